//! What `sm-file` does beyond the common facts: its mark, its directory, a full file system.

use crate::harness::{Bench, CARRIERS, config};
use plugin::PluginErrorKind::{Denied, Exists, NoSpace, NotFound};
use plugin::{Carrier, Location, SrHandle, Storage, StoragePlugin};
use std::path::PathBuf;
use std::process::Command;
use units::{MIB, SrUuid};

struct FileSr {
    storage: Storage,
    directory: PathBuf,
    handle: SrHandle,
    uuid: SrUuid,
}

async fn file_sr(bench: &Bench, carrier: Carrier, name: &str) -> FileSr {
    bench.load("sm-file", carrier).await.unwrap();
    let storage = bench.host.storage("file").unwrap();
    let directory = bench.granted.join(name);
    let config = config(&[("location", directory.to_str().unwrap())]);
    let uuid = SrUuid::random();
    let config = storage.sr_create(uuid, &config).await.unwrap();
    let handle = storage.sr_attach(uuid, &config).await.unwrap();
    FileSr {
        storage,
        directory,
        handle,
        uuid,
    }
}

#[tokio::test]
async fn a_directory_without_its_mark_is_an_error_and_never_an_empty_sr() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let sr = file_sr(&bench, carrier, "sr").await;
        let id = "a".parse().unwrap();
        sr.storage
            .container_create(&sr.handle, &id, MIB)
            .await
            .unwrap();
        // As if the file system with the SR were unmounted.
        let away = bench.granted.join("away");
        std::fs::rename(&sr.directory, &away).unwrap();
        std::fs::create_dir(&sr.directory).unwrap();
        let error = sr.storage.container_list(&sr.handle).await.unwrap_err();
        assert_eq!(error.kind, NotFound, "{error}");
        assert!(error.message.contains("is it mounted?"), "{error}");
        let error = sr
            .storage
            .container_create(&sr.handle, &id, MIB)
            .await
            .unwrap_err();
        assert_eq!(error.kind, NotFound);
        assert_eq!(
            std::fs::read_dir(&sr.directory).unwrap().count(),
            0,
            "it wrote there"
        );
        sr.storage.sr_detach(&sr.handle).await.unwrap();
        std::fs::remove_dir(&sr.directory).unwrap();
        std::fs::rename(&away, &sr.directory).unwrap();
        assert_eq!(
            sr.storage.container_list(&sr.handle).await.unwrap().len(),
            1
        );
    }
}

#[tokio::test]
async fn the_mark_of_another_sr_is_not_taken_for_its_own() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let sr = file_sr(&bench, carrier, "sr").await;
        let mark = sr.directory.join(".xylem-sr");
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), sr.uuid.to_string());
        let other = SrUuid::random();
        std::fs::write(&mark, other.to_string()).unwrap();
        let error = sr.storage.sr_stat(&sr.handle).await.unwrap_err();
        assert_eq!(error.kind, NotFound, "{error}");
        assert!(error.message.contains(&other.to_string()), "{error}");
    }
}

#[tokio::test]
async fn containers_are_plain_files_and_nothing_else_in_the_directory_is_one() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let sr = file_sr(&bench, carrier, "sr").await;
        std::fs::create_dir(sr.directory.join("directory")).unwrap();
        std::fs::write(sr.directory.join(".hidden"), "").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", sr.directory.join("link")).unwrap();
        let id = "a.vhd".parse().unwrap();
        sr.storage
            .container_create(&sr.handle, &id, MIB)
            .await
            .unwrap();
        let list = sr.storage.container_list(&sr.handle).await.unwrap();
        assert_eq!(list.len(), 1, "{list:?}");
        let located = sr.storage.container_locate(&sr.handle, &id).await.unwrap();
        assert_eq!(located, Location::File(sr.directory.join("a.vhd")));
        std::fs::write(sr.directory.join("a.vhd"), vec![1; 8192]).unwrap();
        // The same call again, after a crash: what was written stays.
        sr.storage
            .container_create(&sr.handle, &id, MIB)
            .await
            .unwrap();
        let directory = "directory".parse().unwrap();
        let taken = sr
            .storage
            .container_create(&sr.handle, &directory, MIB)
            .await
            .unwrap_err();
        assert_eq!(taken.kind, Exists, "{taken}");
        let list = sr.storage.container_list(&sr.handle).await.unwrap();
        assert_eq!((list[0].capacity_bytes, list[0].used_bytes), (8192, 8192));
    }
}

#[tokio::test]
async fn a_location_that_is_not_granted_is_denied() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        bench.load("sm-file", carrier).await.unwrap();
        let storage = bench.host.storage("file").unwrap();
        let outside = bench.beside("outside");
        let config = config(&[("location", outside.to_str().unwrap())]);
        let error = storage
            .sr_create(SrUuid::random(), &config)
            .await
            .unwrap_err();
        assert_eq!(error.kind, Denied, "{error}");
        assert!(!outside.exists());
    }
}

/// A file system that takes a mark and one more file.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let options = "size=64k,nr_inodes=4";
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "small"])
            .arg(&path)
            .status();
        done.is_ok_and(|status| status.success())
            .then_some(Self(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_file_system_is_no_space() {
    for carrier in CARRIERS {
        let bench = Bench::new();
        let Some(small) = Small::mount(bench.granted.join("small")) else {
            println!("skipped: this user may not mount a small file system");
            return;
        };
        let sr = file_sr(&bench, carrier, "small").await;
        let mut made = 0;
        let error = loop {
            let id = format!("c-{made}").parse().unwrap();
            match sr.storage.container_create(&sr.handle, &id, MIB).await {
                Ok(_) if made > 8 => panic!("four inodes hold {made} files"),
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind, NoSpace, "{error}");
        assert_eq!(
            sr.storage.container_list(&sr.handle).await.unwrap().len(),
            made
        );
        let stat = sr.storage.sr_stat(&sr.handle).await.unwrap();
        assert_eq!(stat.total_bytes, 64 << 10);
        bench.host.shutdown().await;
        drop(small);
    }
}
