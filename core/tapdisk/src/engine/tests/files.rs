//! On real files through io_uring and its fallback, with other programs as judges.

use super::rig::{BLOCK, Rig, SECTOR, uuid};
use crate::engine::{LayerImage, LayerSpec, LiveOp, Request};
use block::{Buffer, FileId, Rng};
use datapath::protocol::Access;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use uring::{PreadIo, Ring, Uring};
use uuid::Uuid;
use vhd_checker::{Strictness, check, read_flat};
use vhd_rs::{Content, Image, NewImage, OpenOptions, ParentLink, Timestamp};

const SIZE: u64 = 8 * BLOCK;

fn rings() -> [Ring; 2] {
    let uring = Uring::new().expect("io_uring is allowed where the tests run");
    [
        Ring::Uring(Box::new(uring)),
        Ring::Pread(PreadIo::new().expect("epoll")),
    ]
}

fn create(path: &Path, n: u32, parent: Option<(&str, Uuid)>) {
    let modified = Timestamp::from_unix_s(1_700_000_000);
    let content = match parent {
        None => Content::Dynamic,
        Some((path, uuid)) => Content::Differencing(ParentLink {
            path: path.to_owned(),
            uuid,
            modified,
        }),
    };
    let image = NewImage {
        uuid: uuid(n),
        created: modified,
        virtual_bytes: SIZE,
        resize_max_bytes: SIZE,
        content,
        extent: vhd_rs::Extent::Grows,
        container_bytes: 0,
    };
    let mut file = File::create_new(path).expect("a new file");
    image
        .plan()
        .expect("a plan")
        .apply(&mut file)
        .expect("it applies");
}

fn layer(ring: &mut Ring, path: &Path, access: vhd_rs::Access) -> LayerSpec {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the file opens");
    let options = OpenOptions {
        extent: vhd_rs::Extent::Grows,
        access,
    };
    let image = Image::open(&file, options).expect("the image opens");
    let file_bytes = file.metadata().expect("its size").len();
    let id: FileId = ring.add_file(file.into());
    LayerSpec {
        file: id,
        file_bytes,
        image: LayerImage::Vhd(Box::new(image)),
    }
}

/// Many changes in flight; `mirror` gets what the disk must read as.
fn scribble(rig: &mut Rig<Ring>, mirror: &mut [u8], rng: &mut Rng) {
    for round in 0..12 {
        let mut tickets = Vec::new();
        for _ in 0..16 {
            let len = (1 + rng.below(300)) * SECTOR;
            let offset = rng.below((SIZE - len) / SECTOR) * SECTOR;
            let place = offset as usize..(offset + len) as usize;
            if rng.one_in(5) {
                mirror[place].fill(0);
                let may_trim = rng.one_in(2);
                let zero = Request::WriteZeroes {
                    offset,
                    len_bytes: len,
                    may_trim,
                    fua: false,
                };
                tickets.push(rig.submit(zero));
            } else {
                let fill = 1 + rng.below(255) as u8;
                mirror[place].fill(fill);
                let data = Buffer::copy_of(&vec![fill; len as usize]);
                tickets.push(rig.submit(Request::Write {
                    offset,
                    data,
                    fua: rng.one_in(8),
                }));
            }
        }
        if round == 5 {
            mirror[..BLOCK as usize].fill(0x5A);
            let data = Buffer::copy_of(&vec![0x5A; BLOCK as usize]);
            tickets.push(rig.submit(Request::Write {
                offset: 0,
                data,
                fua: false,
            }));
        }
        for ticket in tickets {
            match rig.take(ticket) {
                Some(result) => result.map(|_| ()),
                None => rig.wait(ticket).map(|_| ()),
            }
            .expect("a change works");
        }
    }
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output();
    let output = output.expect("qemu-img is installed where the tests run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
}

fn sound(path: &Path) {
    let report = check(path, Strictness::Closed).expect("the checker reads it");
    assert!(
        report.is_sound(),
        "{}: {:?}",
        path.display(),
        report.problems
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn what_is_written_is_what_other_programs_read() {
    for mut ring in rings() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| -> PathBuf { folder.path().join(name) };
        let (base, leaf) = (at("base.vhd"), at("leaf.vhd"));
        let (mut mirror, mut rng) = (vec![0u8; SIZE as usize], Rng::new(11));
        create(&base, 1, None);
        let layers = vec![layer(&mut ring, &base, vhd_rs::Access::ReadWrite)];
        let mut rig = Rig::with_layers(ring, layers, Access::ReadWrite).expect("it opens");
        scribble(&mut rig, &mut mirror, &mut rng);
        let at_snapshot = mirror.clone();
        create(&leaf, 2, Some(("base.vhd", uuid(1))));
        let spec = layer(&mut rig.io, &leaf, vhd_rs::Access::ReadWrite);
        rig.run_live(LiveOp::SnapshotSwitch(Box::new(spec)))
            .expect("the switch works");
        scribble(&mut rig, &mut mirror, &mut rng);
        let seen = rig.read(0, SIZE).expect("a read works");
        assert!(seen == mirror, "the engine reads back something else");
        rig.close();

        sound(&base);
        sound(&leaf);
        let flat = read_flat(&[leaf, base.clone()]).and_then(|flat| flat.bytes());
        assert!(
            flat.expect("the chain reads") == mirror,
            "the naive reader differs"
        );
        let raw = at("base.raw");
        std::fs::write(&raw, &at_snapshot).expect("a raw copy");
        qemu_img(&["compare", "-f", "vpc", "-F", "raw", text(&base), text(&raw)]);
    }
}

#[test]
fn images_that_qemu_makes_are_read_and_written() {
    for mut ring in rings() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| -> PathBuf { folder.path().join(name) };
        let (raw, vhd) = (at("disk.raw"), at("disk.vhd"));
        let mut mirror = vec![0u8; SIZE as usize];
        mirror[..5000].fill(3);
        mirror[3 * BLOCK as usize + 512..][..70_000].fill(4);
        std::fs::write(&raw, &mirror).expect("a raw disk");
        let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on"];
        qemu_img(&[&convert[..], &[text(&raw), text(&vhd)]].concat());
        let layers = vec![layer(&mut ring, &vhd, vhd_rs::Access::ReadWrite)];
        let mut rig = Rig::with_layers(ring, layers, Access::ReadWrite).expect("it opens");
        assert!(
            rig.read(0, SIZE).expect("a read works") == mirror,
            "it reads otherwise"
        );
        scribble(&mut rig, &mut mirror, &mut Rng::new(5));
        rig.close();
        std::fs::write(&raw, &mirror).expect("a raw copy");
        qemu_img(&["compare", "-f", "vpc", "-F", "raw", text(&vhd), text(&raw)]);
        let flat = read_flat(std::slice::from_ref(&vhd)).and_then(|flat| flat.bytes());
        assert!(
            flat.expect("it reads") == mirror,
            "the naive reader differs"
        );
    }
}
