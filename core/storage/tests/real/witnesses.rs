//! Images and exports as other people's tools see them.

use crate::bench::{Bench, ctx, io, run, uri};
use datapath::Access;
use std::fs;
use storage::{NewName, NewVdi, StorageErrorKind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_served_reads_as_the_same_writes_on_a_raw_file() {
    let bench = Bench::new().await;
    let vdi = bench.create(64 << 20).await.vdi;
    let raw = bench.dir.path().join("expected");
    let file = fs::File::create(&raw).expect("a raw file");
    file.set_len(64 << 20).expect("its size");
    let disk = bench.plug(vdi, "vm-1", Access::ReadWrite).await;
    let rounds = [
        ["write -P 0x11 0 5M", "write -P 0x12 30M 100k"],
        ["write -P 0x21 1000k 3M", "write -P 0x22 30000k 512"],
        ["write -z 2M 1M", "write -P 0x32 63M 1M"],
    ];
    for round in rounds {
        io(&disk, &round);
        io(&disk, &["flush"]);
        let mut args = vec!["-f".to_owned(), "raw".to_owned()];
        args.extend(
            round
                .iter()
                .flat_map(|command| ["-c".to_owned(), (*command).to_owned()]),
        );
        args.push(raw.display().to_string());
        run("qemu-io", args);
        let live = uri(&disk);
        run(
            "qemu-img",
            [
                "compare",
                "-f",
                "raw",
                "-F",
                "raw",
                &live,
                raw.to_str().expect("a path"),
            ],
        );
        let made = bench
            .manager
            .vdi_snapshot(&ctx(), bench.sr, vdi, NewName::default())
            .await;
        made.expect("a snapshot");
    }
    // libnbd's client against the same export.
    let copied = bench.dir.path().join("copied");
    run(
        "nbdcopy",
        [uri(&disk).as_str(), copied.to_str().expect("a path")],
    );
    let same = fs::read(&copied).expect("the copy") == fs::read(&raw).expect("the raw file");
    assert!(same, "nbdcopy reads something else");
    let info = run("nbdinfo", [uri(&disk).as_str()]);
    assert!(info.contains("67108864"), "{info}");
    bench.unplug(vdi, "vm-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vhd_that_qemu_made_is_adopted_as_it_is_and_nothing_else_is() {
    let bench = Bench::new().await;
    let path = |name: &str| bench.dir.path().join(name).display().to_string();
    let (raw, vhd) = (path("raw"), path("vhd"));
    run("qemu-img", ["create", "-q", "-f", "raw", &raw, "64M"]);
    run("qemu-io", ["-f", "raw", "-c", "write -P 0x5a 3M 2M", &raw]);
    let import = async |bytes: &[u8]| {
        let size = bytes.len() as u64;
        let import = bench
            .manager
            .vdi_import_container(&ctx(), bench.sr, size)
            .await;
        let import = import.expect("a container");
        let mut file = import.open().expect("its file");
        std::io::Write::write_all(&mut file, bytes).expect("the upload");
        file.sync_all().expect("the upload on the disk");
        let new = NewVdi::default();
        let adopted = bench.manager.adopt_image(&ctx(), import.clone(), new).await;
        bench
            .manager
            .import_abort(&ctx(), import)
            .await
            .expect("aborted or adopted");
        adopted
    };
    for subformat in ["dynamic", "fixed"] {
        let options = format!("subformat={subformat},force_size=on");
        run(
            "qemu-img",
            [
                "convert", "-f", "raw", "-O", "vpc", "-o", &options, &raw, &vhd,
            ],
        );
        let adopted = import(&fs::read(&vhd).expect("the VHD"))
            .await
            .expect("a VDI");
        let flat = bench.flatten(bench.sr, adopted.vdi, subformat).await;
        let flat = flat.to_str().expect("a path");
        run(
            "qemu-img",
            ["compare", "-f", "raw", "-F", "raw", &raw, flat],
        );
        let clone = bench
            .manager
            .vdi_clone(&ctx(), bench.sr, adopted.vdi, NewName::default())
            .await;
        let clone = clone.expect("a clone of a stranger").vdi;
        let disk = bench.plug(clone, "vm-1", Access::ReadWrite).await;
        io(
            &disk,
            &["read -P 0x5a 3M 2M", "write -P 0x11 0 1M", "flush"],
        );
        bench.unplug(clone, "vm-1").await;
    }
    for junk in [&b""[..], b"not a VHD", &[0; 65536]] {
        let refused = import(junk).await;
        assert_eq!(refused.unwrap_err().kind(), StorageErrorKind::ImageInvalid);
    }
    let scan = bench
        .manager
        .sr_scan(&ctx(), bench.sr)
        .await
        .expect("a scan");
    assert_eq!((scan.vdis.len(), scan.orphans), (4, vec![]));
}
