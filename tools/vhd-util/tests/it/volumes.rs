//! Images on block devices: loop devices over files that had other content before. They need root
//! and a kernel with loop devices; without, the test says so and is over.

use crate::support::{Folder, MIB};
use std::process::Command;
use vhd_checker::{Place, Strictness, check_in};

/// A loop device; gone when dropped.
pub(crate) struct Device {
    pub(crate) name: String,
    backing: &'static str,
}

impl Device {
    pub(crate) fn new(folder: &Folder, backing: &'static str, size: u64) -> Option<Self> {
        std::fs::write(folder.path(backing), vec![0x5a; size as usize]).expect("room");
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(folder.path(backing))
            .output();
        let output = match output {
            Ok(output) if output.status.success() => output,
            Ok(output) => {
                println!(
                    "no loop device: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                return None;
            }
            Err(error) => {
                println!("no loop device: losetup: {error}");
                return None;
            }
        };
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Some(Self { name, backing })
    }

    fn sound(&self, folder: &Folder) {
        let report = check_in(
            &folder.path(self.backing),
            Place::Volume,
            Strictness::Closed,
        );
        assert_eq!(report.expect("a file").problems, [], "{}", self.name);
    }

    /// Makes the device see another size of the file behind it.
    fn resize(&self, folder: &Folder, size: u64) {
        let file = std::fs::File::options()
            .write(true)
            .open(folder.path(self.backing));
        file.and_then(|file| file.set_len(size)).expect("room");
        let status = Command::new("losetup").args(["-c", &self.name]).status();
        assert!(status.expect("losetup").success());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Should it fail, a device without use is left behind.
        let _ = Command::new("losetup").args(["-d", &self.name]).status();
    }
}

#[test]
fn images_live_on_block_devices() {
    let folder = Folder::new();
    let Some(device) = Device::new(&folder, "backing", 12 * MIB) else {
        return;
    };
    let name = &device.name;
    folder.util(&format!("create -n {name} -s 16 -S 2048"));
    device.sound(&folder);
    assert_eq!(folder.util(&format!("query -n {name} -v -a")), "16\n0\n");
    assert_eq!(
        folder.util(&format!("check -n {name}")),
        format!("{name} is valid\n")
    );

    // A file's child of it, coalesced into it: what was on the device before is not seen.
    folder.util(&format!("snapshot -n child.vhd -p {name}"));
    folder.put("child.vhd", 4095, &[7; 2 * 512]);
    assert_eq!(folder.util("coalesce -n child.vhd"), "Coalesced 2 sectors");
    device.sound(&folder);
    let read = folder.util_bytes(&format!("read -n {name} -r 4000 -c 200"));
    let mut expected = vec![0; 200 * 512];
    expected[95 * 512..97 * 512].fill(7);
    assert!(read == expected);
    assert_eq!(
        folder.util(&format!("check -n {name} -b")),
        format!("{name} is valid\n")
    );

    // The volume grows: the footer follows. Then it is full, which is told in time.
    device.resize(&folder, 14 * MIB);
    assert_eq!(folder.fails(&format!("check -n {name}")).0, 22);
    folder.util(&format!("check -n {name} -i"));
    folder.util(&format!("modify -n {name} -s {}", 14 * MIB));
    device.sound(&folder);
    assert_eq!(
        folder.fails(&format!("modify -n {name} -s {}", 15 * MIB)).0,
        22
    );
    assert_eq!(folder.fails(&format!("modify -n {name} -s {}", MIB)).0, 28);
    let (code, said) = folder.fails(&format!("fill -n {name}"));
    assert_eq!(
        (
            code,
            said.contains("NoSpace") || said.contains("next block")
        ),
        (28, true),
        "{said}"
    );
    folder.util(&format!("repair -n {name}"));
    device.sound(&folder);

    // Another layout under a journal on a device, which stays.
    let Some(journal) = Device::new(&folder, "journal", 8 * MIB) else {
        return;
    };
    folder.util(&format!("modify -n {name} -z"));
    folder.put("child.vhd", 0, &[9; 512]);
    folder.util("coalesce -n child.vhd");
    folder.util(&format!("resize -n {name} -s 1126400 -j {}", journal.name));
    device.sound(&folder);
    assert_eq!(
        folder.util(&format!("query -n {name} -v -a")),
        "1126400\n2\n"
    );
    assert!(folder.util_bytes(&format!("read -n {name} -r 0 -c 1")) == [9; 512]);
    assert!(folder.util_bytes(&format!("read -n {name} -r 4096 -c 1")) == [7; 512]);
    // Its journal is of no use any more, and does nothing.
    let before = folder.bytes("backing");
    folder.util(&format!("revert -n {name} -j {}", journal.name));
    assert!(folder.bytes("backing") == before);
}
