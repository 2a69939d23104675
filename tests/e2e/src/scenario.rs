//! The story: a disk is imported, a Linux boots from it, it is snapshotted while it runs, the
//! daemon dies under it and comes back, the snapshot is exported, copied and destroyed and its layers
//! merged, an alarm is raised, and at the end every byte is accounted for. All parts are real.

use crate::host::{Built, Host, Hypervisor};
use crate::process::{command, output, run, wait_for};
use crate::story_guest::{self, FILES_OK, LINES_FILE, last_line};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use test_guest::Kernel;

/// Booting Debian's kernel under software emulation, on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// A guest that writes a line each second.
const LINES_LIMIT: Duration = Duration::from_secs(90);

/// Two merges of a small disk, on a busy machine.
const MERGE_LIMIT: Duration = Duration::from_secs(120);

/// Size of the guest's disk.
const DISK_BYTES: u64 = 96 << 20;

/// Plays the whole story in `dir`; `tell` gets a line for each step that has happened.
pub fn play(built: &Built, dir: &Path, tell: &mut dyn FnMut(&str)) -> Result<()> {
    let mut story = Story::begin(built, dir, tell)?;
    let result = story.run();
    if result.is_err() {
        (story.tell)(&format!("daemon log:\n{}", story.host.log_tail()));
        if let Ok(console) = story.console() {
            (story.tell)(&format!("console:\n{console}"));
        }
    }
    result
}

/// Does one step and tells what came of it.
type Step<'a> = fn(&mut Story<'a>) -> Result<String>;

struct Story<'a> {
    tell: &'a mut dyn FnMut(&str),
    host: Host,
    begun: Instant,
    sr: String,
    sr_native: String,
    vdi: String,
    vm: String,
    snapshot: String,
    /// Numbers of the last line on disk before the snapshot was asked for, and after it was there.
    snapshot_lines: (u64, u64),
    /// Number of the last line on disk after the layers were merged.
    merged_line: u64,
}

impl<'a> Story<'a> {
    fn begin(built: &Built, dir: &Path, tell: &'a mut dyn FnMut(&str)) -> Result<Self> {
        let begun = Instant::now();
        let host = Host::start(built, dir, Hypervisor::Qemu).context("step: start a host")?;
        let none = String::new;
        Ok(Self {
            tell,
            host,
            begun,
            sr: none(),
            sr_native: none(),
            vdi: none(),
            vm: none(),
            snapshot: none(),
            snapshot_lines: (0, 0),
            merged_line: 0,
        })
    }

    fn run(&mut self) -> Result<()> {
        let steps: &[(&str, Step<'a>)] = &[
            (
                "make an SR on the component and one on the shared object",
                Self::make_srs,
            ),
            ("import an ext4 file system into a VDI", Self::import_disk),
            ("boot Linux from it and have its files checked", Self::boot),
            ("snapshot the VDI while the guest writes", Self::snapshot),
            ("see the guest go on writing", Self::more_lines),
            (
                "kill -9 the daemon and see the guest still writing",
                Self::kill_daemon,
            ),
            ("start the daemon and see the VM adopted", Self::adopt),
            (
                "export the snapshot and find the lines of its moment in a clean file system",
                Self::export,
            ),
            (
                "copy the snapshot to the other SR and compare the bytes",
                Self::copy,
            ),
            (
                "destroy every snapshot and see the layers merged while the guest writes",
                Self::merge,
            ),
            ("see the monitor plugin's ALARM", Self::alarm),
            ("shut the VM down cleanly", Self::shutdown),
            (
                "check every VHD and compare every disk with an independent reader",
                Self::check_files,
            ),
            (
                "find every line on the guest's disk",
                Self::check_last_lines,
            ),
            ("stop the daemon cleanly", Self::stop),
        ];
        for (number, (what, step)) in steps.iter().enumerate() {
            let told = step(self).with_context(|| format!("step {}: {what}", number + 1))?;
            let seconds = self.begun.elapsed().as_secs_f32();
            (self.tell)(&format!(
                "[{seconds:6.1} s] {:2}. {what}: {told}",
                number + 1
            ));
        }
        Ok(())
    }

    fn make_srs(&mut self) -> Result<String> {
        self.sr = self.make_sr("file", "wasm SR")?;
        self.sr_native = self.make_sr("file-native", "native SR")?;
        Ok(format!("{} and {}", self.sr, self.sr_native))
    }

    fn make_sr(&self, sr_type: &str, name: &str) -> Result<String> {
        let location = self.sr_dir(sr_type);
        fs::create_dir_all(&location)?;
        let location = format!("device-config:location={}", location.display());
        self.host.xe(&[
            "sr-create",
            &format!("type={sr_type}"),
            &format!("name-label={name}"),
            &location,
        ])
    }

    fn sr_dir(&self, sr_type: &str) -> PathBuf {
        self.host.dir().join("sr").join(sr_type)
    }

    fn import_disk(&mut self) -> Result<String> {
        let tree = self.host.dir().join("tree");
        story_guest::make_tree(&tree)?;
        let image = self.path("disk.raw");
        let size = format!("{}k", DISK_BYTES >> 10);
        let tree = tree.to_string_lossy().into_owned();
        run(&mut command(
            "mkfs.ext4",
            &["-q", "-F", "-d", &tree, &image, &size],
        ))?;
        let sr = format!("sr-uuid={}", self.sr);
        let size = format!("virtual-size={DISK_BYTES}");
        self.vdi = self
            .host
            .xe(&["vdi-create", &sr, "name-label=story", &size])?;
        let (uuid, file) = (format!("uuid={}", self.vdi), format!("filename={image}"));
        self.host.xe(&["vdi-import", &uuid, &file, "format=raw"])?;
        Ok(self.vdi.clone())
    }

    fn boot(&mut self) -> Result<String> {
        let kernel = Kernel::find()?;
        let dir = self.host.dir().join("kernels");
        fs::create_dir_all(&dir)?;
        fs::copy(&kernel.image, dir.join("vmlinuz"))?;
        fs::write(dir.join("initramfs"), story_guest::initramfs(&kernel)?)?;
        self.vm = self.host.xe(&["vm-create", "name-label=story"])?;
        let vm = format!("uuid={}", self.vm);
        let kernel = format!("PV-kernel={}", dir.join("vmlinuz").display());
        let ramdisk = format!("PV-ramdisk={}", dir.join("initramfs").display());
        let arguments = "PV-args=console=ttyS0 quiet panic=-1";
        self.host
            .xe(&["vm-param-set", &vm, &kernel, &ramdisk, arguments])?;
        let (vm, vdi) = (
            format!("vm-uuid={}", self.vm),
            format!("vdi-uuid={}", self.vdi),
        );
        self.host.xe(&[
            "vbd-create",
            &vm,
            &vdi,
            "device=0",
            "bootable=true",
            "type=Disk",
            "mode=RW",
        ])?;
        self.host.xe(&["vm-start", &format!("uuid={}", self.vm)])?;
        wait_for("the guest's word on its files", BOOT_LIMIT, || {
            let console = self.console()?;
            if console.contains("STORY files-BAD") || console.contains("STORY mount-failed") {
                bail!("the guest does not like its disk:\n{console}");
            }
            Ok(console.contains(FILES_OK).then_some(()))
        })?;
        let line = self.wait_for_line(3)?;
        Ok(format!("files are right, line {line} is on disk"))
    }

    fn snapshot(&mut self) -> Result<String> {
        let before = last_line(&self.console()?);
        self.snapshot = self
            .host
            .xe(&["vdi-snapshot", &format!("uuid={}", self.vdi)])?;
        let after = last_line(&self.console()?);
        self.snapshot_lines = (before, after);
        Ok(format!(
            "{} between lines {before} and {}",
            self.snapshot,
            after + 1
        ))
    }

    fn more_lines(&mut self) -> Result<String> {
        let line = self.wait_for_line(self.snapshot_lines.1 + 4)?;
        Ok(format!("line {line}"))
    }

    fn kill_daemon(&mut self) -> Result<String> {
        self.host.kill_daemon()?;
        let at = last_line(&self.console()?);
        let line = self.wait_for_line(at + 3)?;
        Ok(format!("killed at line {at}, now at line {line}"))
    }

    fn adopt(&mut self) -> Result<String> {
        self.host.start_daemon()?;
        let vm = format!("uuid={}", self.vm);
        let state = wait_for(
            "the VM to be Running again",
            Duration::from_secs(30),
            || {
                let state = self
                    .host
                    .xe(&["vm-param-get", &vm, "param-name=power-state"])?;
                Ok((state == "running").then_some(state))
            },
        )?;
        let of_vm = format!("vm-uuid={}", self.vm);
        let console = self.host.xe(&["console-list", &of_vm, "--minimal"])?;
        ensure!(!console.is_empty(), "the adopted VM has no console");
        let attached =
            self.host
                .xe(&["vbd-list", &of_vm, "params=currently-attached", "--minimal"])?;
        ensure!(
            attached == "true",
            "the adopted VM's disk is attached: {attached}"
        );
        let at = last_line(&self.console()?);
        let line = self.wait_for_line(at + 2)?;
        Ok(format!("{state}, line {line}"))
    }

    fn export(&mut self) -> Result<String> {
        let image = self.export_raw(&self.snapshot, "snapshot.raw")?;
        let replayed = self.path("snapshot-replayed.raw");
        fs::copy(&image, &replayed)?;
        // 0: clean, 1: the journal was replayed. A second look must find nothing at all.
        let first = output(&mut command("e2fsck", &["-p", &replayed]))?;
        ensure!(
            matches!(first.status.code(), Some(0 | 1)),
            "e2fsck found more than a journal to replay: {}",
            String::from_utf8_lossy(&first.stdout)
        );
        run(&mut command("e2fsck", &["-f", "-n", &replayed]))?;
        let request = format!("cat {LINES_FILE}");
        let lines = run(&mut command("debugfs", &["-R", &request, &replayed]))?;
        let count = check_lines(&lines)?;
        let (before, after) = self.snapshot_lines;
        // The guest may have been anywhere between two lines when it was frozen.
        ensure!(
            (before..=after + 1).contains(&count),
            "the snapshot holds {count} lines, expected {before} to {}",
            after + 1
        );
        Ok(format!("{count} lines"))
    }

    fn copy(&mut self) -> Result<String> {
        let (uuid, sr) = (
            format!("uuid={}", self.snapshot),
            format!("sr-uuid={}", self.sr_native),
        );
        let copy = self.host.xe(&["vdi-copy", &uuid, &sr])?;
        let copied = self.export_raw(&copy, "copy.raw")?;
        let original = self.path("snapshot.raw");
        run(&mut command("cmp", &[&original, &copied]))?;
        Ok(format!("{copy} is equal"))
    }

    /// Two layers that only snapshots needed: one is only a parent when they are gone, and the
    /// guest's leaf stands on the other.
    fn merge(&mut self) -> Result<String> {
        let vdi = format!("uuid={}", self.vdi);
        let second = self.host.xe(&["vdi-snapshot", &vdi])?;
        let line = last_line(&self.console()?);
        self.wait_for_line(line + 2)?;
        let layers = vhds(&self.sr_dir("file"))?.len();
        ensure!(layers == 3, "{layers} layers before anything is destroyed");
        for snapshot in [&self.snapshot, &second] {
            self.host
                .xe(&["vdi-destroy", &format!("uuid={snapshot}")])?;
        }
        wait_for("one layer to be left", MERGE_LIMIT, || {
            let left = vhds(&self.sr_dir("file"))?.len();
            Ok((left == 1).then_some(()))
        })?;
        let merged = last_line(&self.console()?);
        self.merged_line = self.wait_for_line(merged + 2)?;
        let line = self.merged_line;
        Ok(format!("{layers} layers are one, line {line}"))
    }

    fn alarm(&mut self) -> Result<String> {
        let obj = format!("obj-uuid={}", self.vm);
        wait_for("an ALARM about the VM", Duration::from_secs(60), || {
            let uuids = self
                .host
                .xe(&["message-list", "name=ALARM", &obj, "--minimal"])?;
            Ok((!uuids.is_empty()).then_some(uuids))
        })
    }

    fn shutdown(&mut self) -> Result<String> {
        self.host
            .xe(&["vm-shutdown", &format!("uuid={}", self.vm)])?;
        let state = self.host.xe(&[
            "vm-param-get",
            &format!("uuid={}", self.vm),
            "param-name=power-state",
        ])?;
        ensure!(state == "halted", "the VM is {state}");
        Ok(state)
    }

    fn check_files(&mut self) -> Result<String> {
        let mut files = 0;
        for sr_type in ["file", "file-native"] {
            for file in vhds(&self.sr_dir(sr_type))? {
                let report = vhd_checker::check(&file, vhd_checker::Strictness::Closed)
                    .with_context(|| format!("checking {}", file.display()))?;
                ensure!(
                    report.problems.is_empty(),
                    "{}: {:?}",
                    file.display(),
                    report.problems
                );
                files += 1;
            }
        }
        let vdis = self.host.xe(&["vdi-list", "--minimal"])?;
        let mut disks = 0;
        for vdi in vdis.split(',').filter(|uuid| !uuid.is_empty()) {
            self.compare_with_independent_reader(vdi)?;
            disks += 1;
        }
        ensure!(
            files == 2 && disks == 2,
            "{files} files and {disks} disks, where the guest's disk and the copy are left"
        );
        Ok(format!("{files} files, {disks} disks"))
    }

    fn check_last_lines(&mut self) -> Result<String> {
        let image = self.export_raw(&self.vdi, "end.raw")?;
        run(&mut command("e2fsck", &["-f", "-n", &image]))?;
        let request = format!("cat {LINES_FILE}");
        let lines = run(&mut command("debugfs", &["-R", &request, &image]))?;
        let (count, told) = (check_lines(&lines)?, self.merged_line);
        ensure!(
            count >= told,
            "the disk holds {count} lines, the guest told of {told} and went on"
        );
        Ok(format!("{count} lines"))
    }

    /// What the host exports must be what a reader that shares no code with it finds in the files.
    fn compare_with_independent_reader(&self, vdi: &str) -> Result<()> {
        let exported = self.export_raw(vdi, &format!("{vdi}.raw"))?;
        let uuid = format!("uuid={vdi}");
        let leaf = [
            "vdi-param-get",
            &uuid,
            "param-name=sm-config",
            "param-key=vhd-container",
        ];
        let leaf = self.host.xe(&leaf)?;
        let sr = self.host.xe(&[
            "vdi-param-get",
            &format!("uuid={vdi}"),
            "param-name=sr-uuid",
        ])?;
        let sr_type = if sr == self.sr { "file" } else { "file-native" };
        let leaf = self.sr_dir(sr_type).join(&leaf);
        let chain = chain_of(&leaf).with_context(|| format!("chain of {}", leaf.display()))?;
        let flat = self.path(&format!("{vdi}.flat"));
        vhd_checker::read_flat(&chain)?.write_to(Path::new(&flat))?;
        run(&mut command(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &exported, &flat],
        ))?;
        Ok(())
    }

    fn stop(&mut self) -> Result<String> {
        let status = self.host.stop_daemon()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok("exit code 0".to_owned())
    }

    fn export_raw(&self, vdi: &str, name: &str) -> Result<String> {
        let file = self.path(name);
        let (uuid, filename) = (format!("uuid={vdi}"), format!("filename={file}"));
        self.host
            .xe(&["vdi-export", &uuid, &filename, "format=raw"])?;
        Ok(file)
    }

    fn path(&self, name: &str) -> String {
        self.host.dir().join(name).to_string_lossy().into_owned()
    }

    /// Everything the guest has printed.
    fn console(&self) -> Result<String> {
        let log = self
            .host
            .dir()
            .join("run/qemu")
            .join(&self.vm)
            .join("console.log");
        let bytes = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn wait_for_line(&self, number: u64) -> Result<u64> {
        wait_for(&format!("line {number} of the guest"), LINES_LIMIT, || {
            let line = last_line(&self.console()?);
            Ok((line >= number).then_some(line))
        })
    }
}

/// The lines must be 1, 2, 3, ... without a gap; returns how many there are.
fn check_lines(text: &str) -> Result<u64> {
    let mut count = 0;
    for line in text.lines() {
        count += 1;
        ensure!(
            line == format!("line {count} of the story"),
            "line {count} is {line:?}"
        );
    }
    Ok(count)
}

/// The files of a chain, leaf first, found by the parent uuids in the headers: each image lies in
/// the file of its name.
fn chain_of(leaf: &Path) -> Result<Vec<PathBuf>> {
    const DIFFERENCING: u8 = 4;
    let mut chain = vec![leaf.to_owned()];
    loop {
        let last = chain.last().context("a leaf")?;
        let mut head = [0u8; 1536];
        fs::File::open(last)?.read_exact(&mut head)?;
        if head[63] != DIFFERENCING {
            return Ok(chain);
        }
        let hex: String = head[552..568]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let parts = [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ];
        chain.push(leaf.with_file_name(format!("{}.vhd", parts.join("-"))));
    }
}

fn vhds(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == "vhd") {
            files.push(path);
        }
    }
    Ok(files)
}
