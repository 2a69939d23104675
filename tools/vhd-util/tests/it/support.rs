//! A folder with images in it and the programs run there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;
use vhd_checker::{Strictness, check, read_flat};
use vhd_rs::checksum;

pub(crate) const MIB: u64 = 1 << 20;

/// A folder of images.
pub(crate) struct Folder {
    pub(crate) dir: TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Output {
        Command::new(program)
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Runs `vhd-util` with arguments split at spaces; it must succeed. Returns what it prints.
    pub(crate) fn util(&self, line: &str) -> String {
        String::from_utf8(self.util_bytes(line)).expect("text")
    }

    pub(crate) fn util_bytes(&self, line: &str) -> Vec<u8> {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.run(env!("CARGO_BIN_EXE_vhd-util"), &args);
        let errors = String::from_utf8_lossy(&output.stderr);
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{line}: {errors}{printed}");
        output.stdout
    }

    /// Runs `vhd-util`, which must fail; returns its exit code and all it says.
    pub(crate) fn fails(&self, line: &str) -> (i32, String) {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.run(env!("CARGO_BIN_EXE_vhd-util"), &args);
        assert!(!output.status.success(), "{line} succeeded");
        let said = [output.stdout, output.stderr].concat();
        let code = output.status.code().expect("an exit code");
        (code, String::from_utf8_lossy(&said).into_owned())
    }

    /// Runs `cbt-util`; returns whether it succeeded with what it printed, or its exit code.
    pub(crate) fn cbt(&self, line: &str) -> Result<Vec<u8>, i32> {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.run(env!("CARGO_BIN_EXE_cbt-util"), &args);
        match output.status.code() {
            Some(0) => Ok(output.stdout),
            code => Err(code.expect("an exit code")),
        }
    }

    /// Runs one of qemu's programs; it must succeed.
    pub(crate) fn qemu(&self, program: &str, args: &[&str]) -> String {
        let output = self.run(program, args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {errors}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Writes a pattern into an image with qemu, which knows no batmap: only into images that have
    /// blocks already.
    pub(crate) fn qemu_write(&self, name: &str, pattern: u8, at: &str, count: &str) {
        let command = format!("write -P {pattern} {at} {count}");
        self.qemu("qemu-io", &["-f", "vpc", "-c", &command, name]);
    }

    /// The content of a chain as the naive reader sees it, leaf first.
    pub(crate) fn flat(&self, chain: &[&str]) -> Vec<u8> {
        let chain: Vec<PathBuf> = chain.iter().map(|name| self.path(name)).collect();
        read_flat(&chain)
            .and_then(|flat| flat.bytes())
            .expect("a readable chain")
    }

    /// The independent checker finds nothing wrong.
    pub(crate) fn sound(&self, name: &str) {
        let report = check(&self.path(name), Strictness::Closed).expect("a readable file");
        assert_eq!(report.problems, [], "{name}");
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file")
    }

    /// Makes a dynamic image of 16 MiB with these whole blocks filled with their number plus one.
    pub(crate) fn image(&self, name: &str, blocks: &[u8]) {
        self.util(&format!("create -n {name} -s 16"));
        self.fill_blocks(name, blocks);
    }

    /// Fills blocks of an image by way of `coalesce`, from a child that is thrown away.
    pub(crate) fn fill_blocks(&self, name: &str, blocks: &[u8]) {
        for &block in blocks {
            self.put(name, u64::from(block) * 4096, &vec![block + 1; 2 << 20]);
        }
    }

    /// Writes sectors into an image, as a guest would.
    pub(crate) fn put(&self, name: &str, sector: u64, data: &[u8]) {
        let path = self.path(name);
        let mut disk = vhd_util::Disk::open(&path, vhd_rs::Access::ReadWrite).expect("an image");
        let mut writer = vhd_util::Writer::new(&mut disk, vhd_util::Fresh::Zeroed);
        let mut at = sector;
        let mut left = data;
        while !left.is_empty() {
            let inside = at % 4096;
            let count = ((4096 - inside) as usize * 512).min(left.len());
            let (now, later) = left.split_at(count);
            writer
                .write((at / 4096) as u32, inside as u32, now)
                .expect("room");
            at += (count / 512) as u64;
            left = later;
        }
        writer.finish().expect("room");
    }

    /// Changes bytes of a file.
    pub(crate) fn poke(&self, name: &str, at: u64, bytes: &[u8]) {
        let file = File::options()
            .write(true)
            .open(self.path(name))
            .expect("a file");
        file.write_all_at(bytes, at).expect("room");
    }

    /// Changes both footers and makes their checksums right.
    pub(crate) fn poke_footers(&self, name: &str, at: usize, bytes: &[u8]) {
        let len = self.bytes(name).len() as u64;
        for start in [0, len - 512] {
            self.poke_sealed(name, start, 512, 64, at, bytes);
        }
    }

    /// Changes the header and makes its checksum right.
    pub(crate) fn poke_header(&self, name: &str, at: usize, bytes: &[u8]) {
        self.poke_sealed(name, 512, 1024, 36, at, bytes);
    }

    fn poke_sealed(&self, name: &str, start: u64, len: usize, sum: usize, at: usize, new: &[u8]) {
        let all = self.bytes(name);
        let mut region = all[start as usize..start as usize + len].to_vec();
        region[at..at + new.len()].copy_from_slice(new);
        region[sum..sum + 4].fill(0);
        let value = checksum(&region).to_be_bytes();
        region[sum..sum + 4].copy_from_slice(&value);
        self.poke(name, start, &region);
    }

    pub(crate) fn text_path(&self, name: &str) -> String {
        let folder = std::fs::canonicalize(self.dir.path()).expect("a folder");
        folder.join(name).display().to_string()
    }
}
