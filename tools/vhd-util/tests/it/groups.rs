//! Volumes of an LVM group that are not active, on loop devices. What LVM knows is written by its
//! own programs; they need root and the package lvm2, but no device mapper. Without, the test says
//! so and is over.

use crate::support::{Folder, MIB};
use crate::volumes::Device;
use std::os::unix::fs::FileExt;
use std::process::Command;
use uuid::Uuid;
use vhd_rs::{Content, Extent, NewImage, ParentLink, Timestamp};

const EXTENT: u64 = 4 * MIB;
const FIRST_EXTENT_AT: u64 = MIB;

/// Volumes: one in two pieces on two devices, one in one piece, one striped over both.
const VOLUMES: &str = r#"logical_volumes {
  VHD-base { id = "AAAAAA-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" status = ["READ","WRITE","VISIBLE"] segment_count = 2
    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv1", 3] }
    segment2 { start_extent = 2 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 0] } }
  VHD-child { id = "BBBBBB-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" status = ["READ","WRITE","VISIBLE"] segment_count = 1
    segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 4] } }
  VHD-striped { id = "CCCCCC-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" status = ["READ","WRITE","VISIBLE"] segment_count = 1
    segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 2 stripe_size = 128 stripes = ["pv0", 6, "pv1", 6] } }
}
"#;

/// A group on two devices; gone when dropped.
struct Group {
    name: String,
    devices: [Device; 2],
}

impl Group {
    fn new(folder: &Folder) -> Option<Self> {
        let devices = [
            Device::new(folder, "pv0", 40 * MIB)?,
            Device::new(folder, "pv1", 40 * MIB)?,
        ];
        let name = format!("vhd-util-{}", std::process::id());
        let [first, second] = &devices;
        if !lvm(&[
            "vgcreate",
            "-s",
            "4m",
            "--dataalignment",
            "1m",
            &name,
            &first.name,
            &second.name,
        ]) {
            println!("no LVM group: vgcreate (package lvm2) does not work here");
            return None;
        }
        let group = Self { name, devices };
        let text = folder.path("group").display().to_string();
        assert!(lvm(&["vgcfgbackup", "-f", &text, &group.name]));
        let known = std::fs::read_to_string(&text).expect("LVM's text");
        let devices = known.find("physical_volumes").expect("devices");
        let (before, after) = known.split_at(devices);
        std::fs::write(&text, format!("{before}{VOLUMES}{after}")).expect("room");
        assert!(lvm(&["vgcfgrestore", "-f", &text, &group.name]));
        Some(group)
    }

    /// Writes pieces of 4 MiB where LVM was told that they are: device and extent of each.
    fn put(&self, folder: &Folder, image: &[u8], places: &[(&str, u64)]) {
        for (piece, (backing, extent)) in image.chunks(EXTENT as usize).zip(places) {
            let file = std::fs::File::options()
                .write(true)
                .open(folder.path(backing));
            let offset = FIRST_EXTENT_AT + extent * EXTENT;
            file.expect("a device")
                .write_all_at(piece, offset)
                .expect("room");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        lvm(&["vgremove", "-f", "-y", &self.name]);
        for device in &self.devices {
            lvm(&["pvremove", "-f", "-y", &device.name]);
        }
    }
}

/// Runs a command of LVM, which leaves no copies of the group's text in the system.
fn lvm(args: &[&str]) -> bool {
    let (command, options) = args.split_at(1);
    let output = Command::new("lvm")
        .args(command)
        .args(["--config", "backup{backup=0 archive=0}"])
        .args(options)
        .output();
    output.is_ok_and(|output| output.status.success())
}

fn image(content: Content, container_bytes: u64) -> Vec<u8> {
    let new = NewImage {
        uuid: Uuid::from_u128(1),
        created: Timestamp(1),
        virtual_bytes: 16 * MIB,
        resize_max_bytes: 0,
        content,
        extent: Extent::Reserved,
        container_bytes,
    };
    let mut bytes = vec![0; container_bytes as usize];
    let plan = new.plan().expect("an image");
    plan.apply(&mut bytes).expect("memory");
    bytes
}

#[test]
fn volumes_are_scanned_without_being_active() {
    let folder = Folder::new();
    let Some(group) = Group::new(&folder) else {
        return;
    };
    let name = &group.name;
    let base = image(Content::Dynamic, 3 * EXTENT);
    group.put(&folder, &base, &[("pv1", 3), ("pv1", 4), ("pv0", 0)]);
    let mapped = format!("{}-VHD--base", name.replace('-', "--"));
    let parent = ParentLink {
        path: mapped,
        uuid: Uuid::from_u128(1),
        modified: Timestamp(1),
    };
    let child = image(Content::Differencing(parent), EXTENT);
    group.put(&folder, &child, &[("pv0", 4)]);

    let line = |name: &str, size: u64, parent: &str| {
        format!(
            "vhd={name} capacity={} size={size} hidden=0 parent={parent}\n",
            16 * MIB
        )
    };
    let striped = |said: &str| {
        let error = said.lines().last().expect("a line");
        assert!(
            error.contains("VHD-striped scan-error=38 error-message='"),
            "{said}"
        );
    };
    // All that is said of an empty image: its metadata and a footer; fast, the volume's size.
    for (options, base, child) in [("-f -c", 3 * EXTENT, EXTENT), ("-c", 3584, 5120)] {
        let said = folder.util(&format!("scan {options} -m VHD-* -l {name}"));
        let expected = line("VHD-base", base, "none") + &line("VHD-child", child, "VHD-base");
        assert!(said.starts_with(&expected), "{said}");
        striped(&said);
    }
    let said = folder.util(&format!("scan -f -p -a -m VHD-child -l {name}"));
    let tree =
        line("VHD-base", 3 * EXTENT, "none") + "   " + &line("VHD-child", EXTENT, "VHD-base");
    assert_eq!(said, tree);
    assert_eq!(
        folder.fails(&format!("scan -m VHD-striped -l {name}")).0,
        38
    );
    assert_eq!(folder.fails("scan -l no-such-group").0, 22);
}
