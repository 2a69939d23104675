//! A host on real parts, and the tools that look at what it serves.

use crate::directory::Directory;
use database::{Database, Schema};
use datapath::{Access, Supervisor, SupervisorConfig};
use plugin::DeviceConfig;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use storage::{CallContext, NbdEndpoint, NewVdi, StorageConfig, StorageManager, Tapdisks, VdiInfo};
use units::{DpId, RequestId, SrUuid, VdiUuid};

pub(crate) struct Bench {
    pub(crate) manager: StorageManager,
    pub(crate) sr: SrUuid,
    pub(crate) dir: tempfile::TempDir,
    database: Database,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let schema = Schema {
            version: 1,
            classes: Vec::new(),
        };
        let database = Database::open(dir.path().join("db"), schema).expect("a new database");
        let manager = start(dir.path(), &database).await;
        let sr = SrUuid::random();
        let bench = Self {
            manager,
            sr,
            dir,
            database,
        };
        bench.make_sr(sr).await;
        bench
    }

    /// Another daemon takes over; the processes run on.
    pub(crate) async fn restart(&mut self) {
        self.manager = start(self.dir.path(), &self.database).await;
    }

    pub(crate) async fn make_sr(&self, sr: SrUuid) {
        let location = self.sr_dir(sr).display().to_string();
        let config = DeviceConfig::from([("location".to_owned(), location)]);
        let made = self
            .manager
            .sr_create(&ctx(), sr, "directory", &config, "SR", "")
            .await;
        let config = made.expect("a new SR");
        let attached = self
            .manager
            .sr_attach(&ctx(), sr, "directory", &config)
            .await;
        attached.expect("an attached SR");
    }

    pub(crate) fn sr_dir(&self, sr: SrUuid) -> PathBuf {
        self.dir.path().join(sr.to_string())
    }

    pub(crate) async fn create(&self, virtual_bytes: u64) -> VdiInfo {
        let new = NewVdi {
            virtual_bytes,
            ..NewVdi::default()
        };
        self.manager
            .vdi_create(&ctx(), self.sr, new)
            .await
            .expect("a new VDI")
    }

    /// Attaches and activates for a guest.
    pub(crate) async fn plug(&self, vdi: VdiUuid, vm: &str, access: Access) -> NbdEndpoint {
        let dp = dp(vm, vdi);
        let attached = self
            .manager
            .attach(&ctx(), &dp, self.sr, vdi, vm, access)
            .await;
        let backend = attached.expect("attached");
        self.manager
            .activate(&ctx(), &dp, self.sr, vdi)
            .await
            .expect("activated");
        backend.nbd
    }

    pub(crate) async fn unplug(&self, vdi: VdiUuid, vm: &str) {
        self.manager
            .dp_destroy(&ctx(), &dp(vm, vdi))
            .await
            .expect("unplugged");
    }

    /// What a VDI of any SR holds, as a raw file that `qemu-img` made of its export.
    pub(crate) async fn flatten(&self, sr: SrUuid, vdi: VdiUuid, name: &str) -> PathBuf {
        let raw = self.dir.path().join(name);
        let export = self
            .manager
            .export_open(&ctx(), sr, vdi)
            .await
            .expect("an export");
        let from = uri(&export.nbd);
        run(
            "qemu-img",
            [
                "convert".as_ref(),
                "-f".as_ref(),
                "raw".as_ref(),
                "-O".as_ref(),
                "raw".as_ref(),
                from.as_ref(),
                raw.as_os_str(),
            ],
        );
        export.close(&ctx()).await.expect("closed");
        raw
    }

    /// Ids of the data-path processes that run.
    pub(crate) async fn pids(&self) -> Vec<u32> {
        pids(self.dir.path()).await
    }
}

impl Drop for Bench {
    /// Ends every process, also after a failure.
    fn drop(&mut self) {
        let dir = self.dir.path().to_owned();
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let pids = runtime.expect("a runtime").block_on(pids(&dir));
            pids.into_iter().for_each(kill);
        });
        ended.join().expect("the processes are ended");
    }
}

async fn start(dir: &Path, database: &Database) -> StorageManager {
    let tapdisks = Arc::new(Tapdisks::new(supervisor(dir)));
    let config = StorageConfig {
        boot_id: "boot".to_owned(),
    };
    let manager = StorageManager::open(config, database, Arc::new(Directory), tapdisks).await;
    manager.expect("a storage manager")
}

fn supervisor(dir: &Path) -> Supervisor {
    let config = SupervisorConfig {
        binary: binary(),
        run_dir: dir.join("run"),
        log_dir: dir.join("log"),
        run_as: None,
    };
    Supervisor::new(config)
}

/// The data path beside this test's own directory, `target/<profile>/xylem-tapdisk`.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps");
    let binary = profile.join("xylem-tapdisk");
    assert!(
        binary.is_file(),
        "{} is missing: run `cargo build -p tapdisk`",
        binary.display()
    );
    binary
}

async fn pids(dir: &Path) -> Vec<u32> {
    let supervisor = supervisor(dir);
    let mut pids = Vec::new();
    for name in supervisor.running().await.unwrap_or_default() {
        if let Ok(client) = supervisor.client(&name, &RequestId::random()).await {
            pids.push(client.pid());
        }
    }
    pids
}

/// Ends a process at once, as the kernel would for want of memory.
pub(crate) fn kill(pid: u32) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let killed = rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::KILL);
    assert!(
        killed.is_ok() || killed == Err(rustix::io::Errno::SRCH),
        "{killed:?}"
    );
}

pub(crate) fn ctx() -> CallContext {
    CallContext::new(RequestId::random())
}

fn dp(vm: &str, vdi: VdiUuid) -> DpId {
    format!("vbd/{vm}/{vdi}").parse().expect("a datapath id")
}

pub(crate) fn uri(at: &NbdEndpoint) -> String {
    format!("nbd+unix:///{}?socket={}", at.export, at.socket.display())
}

/// Runs a tool, which must work; returns what it says.
pub(crate) fn run<S: AsRef<OsStr>>(tool: &str, args: impl IntoIterator<Item = S>) -> String {
    let output = Command::new(tool).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{tool} does not start: {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{tool}: {}\n{said}{complaint}",
        output.status
    );
    said + &complaint
}

/// Has QEMU's client do `commands` (`write -P 0x11 0 64k`, `read -P ..`, `flush`) on an export. A
/// pattern that is not there fails.
pub(crate) fn io(at: &NbdEndpoint, commands: &[&str]) {
    let mut args = vec!["-f".to_owned(), "raw".to_owned()];
    if !commands.iter().any(|command| command.starts_with("write")) {
        args.push("-r".to_owned());
    }
    for command in commands {
        args.extend(["-c".to_owned(), (*command).to_owned()]);
    }
    args.push(uri(at));
    let said = run("qemu-io", args);
    assert!(!said.contains("failed"), "{commands:?}: {said}");
}
