//! The Linux guest of the story: checks its disk's files, appends a line each second, keeps
//! writing enough for an alarm, and powers off when its power button is pressed.

use anyhow::Result;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use test_guest::{BUTTON_MODULES, DISK_MODULES, Initramfs, Kernel};

/// What the guest prints on its console when every file of the manifest is right.
pub const FILES_OK: &str = "STORY files-ok";

/// What the guest prints before the number of each line that is on disk.
pub const LINE: &str = "STORY line ";

/// The file the lines go to, seen from the root of the disk.
pub const LINES_FILE: &str = "lines";

/// The init script. busybox's acpid maps the power button to `/etc/acpi/PWRF/00000080`.
const SCRIPT: &str = r#"
acpid -l /dev/null
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; usleep 200000; done
mount -t ext4 /dev/vda /mnt || { echo STORY mount-failed; poweroff -f; }
cd /mnt
if sha256sum -c MANIFEST > /tmp/sums 2>&1; then echo STORY files-ok; else echo STORY files-BAD; cat /tmp/sums; fi
n=0
[ -f lines ] && n=$(wc -l < lines)
while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    echo "line $n of the story" >> lines
    dd if=/dev/urandom of=load bs=256k count=4 conv=notrunc,fsync 2> /dev/null
    sync
    echo "STORY line $n"
    usleep 1000000
done
echo STORY stopping
cd /
umount /mnt && echo STORY unmounted
"#;

/// Builds the guest's initial RAM file system.
pub fn initramfs(kernel: &Kernel) -> Result<Vec<u8>> {
    let modules: Vec<&str> = DISK_MODULES.iter().chain(BUTTON_MODULES).copied().collect();
    let button = b"#!/bin/sh\necho stop > /tmp/stop\n";
    let initramfs = Initramfs::new(kernel, &modules)?.file("etc/acpi/PWRF/00000080", 0o755, button);
    Ok(initramfs.build(SCRIPT))
}

/// Makes a directory tree with a manifest of its checksums, to become the guest's disk.
pub fn make_tree(dir: &Path) -> Result<()> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    files.insert("README".into(), b"A disk that has a story.\n".to_vec());
    files.insert("empty".into(), Vec::new());
    for depth in 0..8u32 {
        // Different sizes around block borders, with content that does not compress to a pattern.
        let size = 4096 * depth as usize * depth as usize + depth as usize;
        let mut state = depth.wrapping_mul(2_654_435_761).wrapping_add(1);
        let content = (0..size).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        files.insert(format!("tree/level{depth}/data{depth}"), content.collect());
    }
    for (name, content) in &files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap_or(dir))?;
        fs::write(path, content)?;
    }
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let sums = crate::process::run(crate::process::command("sha256sum", &names).current_dir(dir))?;
    fs::write(dir.join("MANIFEST"), sums)?;
    Ok(())
}

/// The number of the last line that a console log says is on disk.
pub fn last_line(console: &str) -> u64 {
    let numbers = console
        .lines()
        .filter_map(|line| line.trim().strip_prefix(LINE)?.trim().parse().ok());
    numbers.max().unwrap_or(0)
}
