//! A host of its own: one directory with configuration, state, sockets and logs, and the daemon
//! that works in it.

use crate::process::{command, run, wait_for};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a daemon may take until it answers, and until it has stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the built things lie.
#[derive(Debug, Clone)]
pub struct Built {
    /// `xylemd`, `xe` and the child processes' binaries.
    pub bin_dir: PathBuf,
    /// `sm_file.wasm`, `libsm_file.so`, and the others.
    pub plugins_dir: PathBuf,
}

impl Built {
    /// The binaries of the profile that the running test was built with.
    pub fn beside_this_test() -> Result<Self> {
        let exe = std::env::current_exe()?;
        let bin_dir = exe.ancestors().find(|dir| dir.join("xylemd").is_file());
        let bin_dir = bin_dir
            .context("xylemd is not built: run `cargo xtask test`")?
            .to_path_buf();
        let plugins_dir = test_guest::target_dir()?.join("plugins");
        if !plugins_dir.join("sm_file.wasm").is_file() {
            bail!(
                "no plugins in {}: run `cargo xtask plugins`",
                plugins_dir.display()
            );
        }
        Ok(Self {
            bin_dir,
            plugins_dir,
        })
    }
}

/// Which hypervisor the host's configuration names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// Real guests.
    Qemu,
    /// None.
    Simulator,
}

/// A running (or killed) host.
#[derive(Debug)]
pub struct Host {
    built: Built,
    dir: PathBuf,
    http: SocketAddr,
    daemon: Option<Child>,
}

impl Host {
    /// Writes a configuration into `dir` and starts the daemon.
    pub fn start(built: &Built, dir: &Path, hypervisor: Hypervisor) -> Result<Self> {
        let http = free_address()?;
        fs::create_dir_all(dir.join("sr"))?;
        let mut host = Self {
            built: built.clone(),
            dir: dir.to_owned(),
            http,
            daemon: None,
        };
        fs::write(host.config_file(), host.config(hypervisor))?;
        host.start_daemon()?;
        Ok(host)
    }

    fn config(&self, hypervisor: Hypervisor) -> String {
        let dir = self.dir.display();
        let plugins = self.built.plugins_dir.display();
        let bin_dir = self.built.bin_dir.display();
        let http = self.http;
        let backend = match hypervisor {
            Hypervisor::Qemu => "qemu",
            Hypervisor::Simulator => "simulator",
        };
        format!(
            r#"
[host]
name_label = "e2e"
[paths]
state_dir = "{dir}/state"
run_dir = "{dir}/run"
log_dir = "{dir}/log"
bin_dir = "{bin_dir}"
[log]
filter = "debug,hyper=info,rustls=info"
format = "text"
[api]
http = ["{http}"]
unix_socket = "{dir}/run/xapi"
[hypervisor]
backend = "{backend}"
guest_kernel_dirs = ["{dir}/kernels"]
[metrics]
step_s = 1
[storage]
merge_after_s = 1
[[plugin]]
path = "{plugins}/sm_file.wasm"
grants.files = ["{dir}/sr"]
[[plugin]]
path = "{plugins}/libsm_file.so"
grants.alias = "file-native"
grants.files = ["{dir}/sr"]
[[plugin]]
path = "{plugins}/write_rate_alert.wasm"
grants.messages = true
grants.settings = {{ limit_bytes_per_s = "200000", period_s = "3" }}
"#
        )
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("xylemd.toml")
    }

    /// The host's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the API listens.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The administrator's password, made at the first start.
    pub fn password(&self) -> Result<String> {
        let file = self.dir.join("state/initial-password");
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Starts the daemon and waits until it answers a client.
    pub fn start_daemon(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let child = Command::new(self.built.bin_dir.join("xylemd"))
            .arg("--config")
            .arg(self.config_file())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting xylemd")?;
        self.daemon = Some(child);
        let answered = wait_for("the daemon to answer", PATIENCE, || {
            if let Some(status) = self
                .daemon
                .as_mut()
                .map(Child::try_wait)
                .transpose()?
                .flatten()
            {
                return Ok(Some(Err(anyhow::anyhow!("xylemd ended with {status}"))));
            }
            self.xe(&["host-list", "--minimal"])
                .map(|uuid| (!uuid.is_empty()).then_some(Ok(())))
        });
        answered
            .and_then(|result| result)
            .with_context(|| format!("daemon log:\n{}", self.log_tail()))
    }

    /// Kills the daemon where it stands.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut child = self.daemon.take().context("the daemon does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks the daemon to stop and returns its exit status.
    pub fn stop_daemon(&mut self) -> Result<std::process::ExitStatus> {
        let mut child = self.daemon.take().context("the daemon does not run")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        wait_for("the daemon to stop", PATIENCE, || Ok(child.try_wait()?))
    }

    /// Runs `xe` as local root over the unix socket; returns what it prints, trimmed.
    pub fn xe(&self, args: &[&str]) -> Result<String> {
        Ok(run(&mut self.xe_command(args))?.trim().to_owned())
    }

    /// The `xe` command itself, for those who want its exit code.
    pub fn xe_command(&self, args: &[&str]) -> Command {
        let mut xe = command(self.built.bin_dir.join("xe"), args);
        xe.env("XE_SOCKET", self.dir.join("run/xapi"));
        xe
    }

    /// Runs a Python program with PyPI's XenAPI; it gets the URL, the user and the password.
    pub fn python(&self, program: &str) -> Result<String> {
        let python = test_guest::target_dir()?.join("python/bin/python3");
        if !python.exists() {
            bail!("no Python environment: run `cargo xtask setup`");
        }
        let file = self.dir.join("program.py");
        fs::write(&file, program)?;
        let url = format!("http://{}", self.http);
        run(Command::new(python)
            .arg(&file)
            .args([&url, "root", &self.password()?]))
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("xylemd.log")
    }

    /// Everything the daemon has logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log_file())?)
    }

    /// The end of the daemon's log, for messages.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(40)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Ends everything that works in this host's directory: daemon, guests, data paths.
    pub fn destroy(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            drop(child.kill());
            drop(child.wait());
        }
        for pid in self.processes() {
            // It may have ended by itself meanwhile.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }

    /// Processes of this host other than the daemon: its children, and those whose command line or
    /// log lies in the host's directory.
    pub fn processes(&self) -> Vec<i32> {
        let needle = self.dir.to_string_lossy().into_owned();
        let others =
            [Some(std::process::id()), self.pid()].map(|pid| pid.map(|pid| pid.to_string()));
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let ours = |entry: &fs::DirEntry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // pid (name) state parent ...; the name may hold anything.
            let parent = stat
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(1));
            let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            (parent.is_some() && parent == others[1].as_deref())
                || String::from_utf8_lossy(&cmdline).contains(&needle)
                || fs::read_link(entry.path().join("fd/2"))
                    .is_ok_and(|log| log.to_string_lossy().contains(&needle))
        };
        let of_this_host = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let pid: i32 = name.parse().ok()?;
            (!others.contains(&Some(name)) && ours(&entry)).then_some(pid)
        });
        of_this_host.collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.destroy();
    }
}

fn free_address() -> Result<SocketAddr> {
    // The port is free again when the listener is dropped; nobody else here takes it meanwhile.
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
