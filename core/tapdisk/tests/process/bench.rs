//! A directory with images, a supervisor, and the processes to be ended when a test is over.

use datapath::nbd;
use datapath::protocol::ParentRef;
use datapath::{
    Access, Client, DiskState, Error, Extent, Format, ImageInfo, NewImage, Supervisor,
    SupervisorConfig, listen,
};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use units::{DpId, RequestId};
use uuid::Uuid;
use vhd_checker::{Strictness, check};

pub(crate) const MIB: u64 = 1 << 20;

/// How long a test waits for another process before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) supervisor: Supervisor,
    pids: Mutex<Vec<u32>>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::run_as(None)
    }

    /// Images on a file system that is in memory.
    pub(crate) fn in_memory() -> Self {
        Self::in_dir(tempfile::tempdir_in("/dev/shm").unwrap(), None)
    }

    pub(crate) fn run_as(run_as: Option<(u32, u32)>) -> Self {
        Self::in_dir(tempfile::tempdir().unwrap(), run_as)
    }

    fn in_dir(dir: tempfile::TempDir, run_as: Option<(u32, u32)>) -> Self {
        let supervisor = Supervisor::new(config(dir.path(), run_as));
        Self {
            dir,
            supervisor,
            pids: Mutex::default(),
        }
    }

    /// A second supervisor over the same directories, as a daemon that was started again.
    pub(crate) fn another_supervisor(&self) -> Supervisor {
        Supervisor::new(config(self.dir.path(), None))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn log(&self, process: &str) -> String {
        std::fs::read_to_string(self.path(&format!("log/tapdisk-{process}.log"))).unwrap()
    }

    pub(crate) async fn client(&self, process: &str) -> Client {
        let client = self.supervisor.client(process, &rid()).await.unwrap();
        self.pids.lock().push(client.pid());
        client
    }

    /// Opens a file for reading and writing, making it.
    pub(crate) fn file(&self, name: &str) -> OwnedFd {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(self.path(name)).unwrap().into()
    }

    /// A container of fixed size, as a logical volume is, with old bytes in it.
    pub(crate) fn volume(&self, name: &str, bytes: u64) {
        std::fs::write(self.path(name), vec![0xee; usize::try_from(bytes).unwrap()]).unwrap();
    }

    pub(crate) async fn create(
        &self,
        client: &Client,
        name: &str,
        bytes: u64,
        parent: Option<(&str, Uuid)>,
    ) -> ImageInfo {
        let parent = parent.map(|(name, uuid)| ParentRef {
            name: name.to_owned(),
            uuid,
            mtime_unix_s: 1_700_000_000,
        });
        let image = NewImage {
            uuid: Uuid::new_v4(),
            virtual_bytes: bytes,
            resize_max_bytes: bytes * 4,
            parent,
            extent: Extent::Grows,
        };
        client
            .image_create(&rid(), image, self.file(name))
            .await
            .unwrap()
    }

    pub(crate) async fn try_open(
        &self,
        client: &Client,
        disk: &str,
        layers: &[&str],
        access: Access,
    ) -> Result<DiskState, Error> {
        let format = |name: &str| {
            if name.ends_with(".vhd") {
                Format::Vhd
            } else {
                Format::Raw
            }
        };
        let layers = layers
            .iter()
            .map(|name| (format(name), self.file(name)))
            .collect();
        client
            .open(&rid(), &dp(disk), layers, Extent::Grows, access)
            .await
    }

    pub(crate) async fn open(&self, client: &Client, disk: &str, layers: &[&str]) -> DiskState {
        self.try_open(client, disk, layers, Access::ReadWrite)
            .await
            .unwrap()
    }

    /// Opens a chain and serves it; returns the socket.
    pub(crate) async fn serve(&self, client: &Client, disk: &str, layers: &[&str]) -> PathBuf {
        self.open(client, disk, layers).await;
        self.serve_open(client, disk).await
    }

    pub(crate) async fn serve_open(&self, client: &Client, disk: &str) -> PathBuf {
        let socket = self.supervisor.nbd_socket(disk).unwrap();
        client
            .serve(&rid(), &dp(disk), disk, listen(&socket).unwrap())
            .await
            .unwrap();
        socket
    }

    /// Checks a file that was closed.
    pub(crate) fn assert_sound(&self, name: &str, strictness: Strictness) {
        let report = check(&self.path(name), strictness).unwrap();
        assert!(report.is_sound(), "{name}: {:?}", report.problems);
    }

    /// What a closed chain holds, read by the checker's naive reader, leaf first.
    pub(crate) fn flat(&self, chain: &[&str]) -> Vec<u8> {
        let chain: Vec<PathBuf> = chain.iter().map(|name| self.path(name)).collect();
        vhd_checker::read_flat(&chain).unwrap().bytes().unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in self.pids.lock().drain(..) {
            kill(pid, Signal::KILL);
        }
    }
}

fn config(dir: &Path, run_as: Option<(u32, u32)>) -> SupervisorConfig {
    SupervisorConfig {
        binary: env!("CARGO_BIN_EXE_xylem-tapdisk").into(),
        run_dir: dir.join("run"),
        log_dir: dir.join("log"),
        run_as,
    }
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

pub(crate) fn rid() -> RequestId {
    RequestId::random()
}

pub(crate) fn dp(name: &str) -> DpId {
    name.parse().unwrap()
}

pub(crate) fn uri(socket: &Path, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

pub(crate) async fn nbd(socket: &Path, export: &str) -> nbd::Client {
    nbd::Client::connect(socket, export).await.unwrap()
}

/// Runs a tool without blocking the runtime; its output must be good.
pub(crate) async fn tool(program: &str, arguments: &[&str]) -> String {
    let (ok, text) = try_tool(program, arguments).await;
    assert!(ok, "{program} {arguments:?}: {text}");
    text
}

pub(crate) async fn try_tool(program: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    let both = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&both).into_owned(),
    )
}

/// Waits until something is true.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bytes that differ everywhere and repeat nowhere near.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
