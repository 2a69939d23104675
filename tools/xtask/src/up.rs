//! `cargo xtask up`: a host in the foreground. `cargo xtask demo`: the story, unattended.

use crate::step::{cargo, command, root, run, say, target};
use crate::{build, setup};
use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the daemon may take until it answers, and until it has stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of `up`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where the host keeps its state, disks and logs
    #[arg(long, default_value = ".up")]
    dir: PathBuf,
    /// Which hypervisor runs the domains: qemu or simulator
    #[arg(long, default_value = "qemu")]
    hypervisor: String,
}

/// Options of `demo`.
#[derive(Args)]
pub(crate) struct DemoOptions {
    /// Keep the host's directory instead of removing it when the story ends well
    #[arg(long)]
    keep: bool,
}

/// Sets everything up and runs a host until Ctrl-C.
pub(crate) fn up(options: &Options) -> Result<()> {
    setup::packages()?;
    setup::wasm_target()?;
    build::release()?;
    build::plugins()?;
    let host = UpHost::new(options)?;
    // From here on Ctrl-C is waited for, so that the daemon is stopped and never left behind.
    let signals = stop_signals();
    signals.thread_block()?;
    say(&format!("starting a host in {}", host.dir.display()));
    let mut daemon = host.spawn()?;
    let outcome = host
        .wait_until_ready(&mut daemon)
        .and_then(|()| host.greet());
    if outcome.is_ok() {
        wait_for_stop(&signals, &mut daemon)?;
    }
    stop(&mut daemon)?;
    outcome?;
    say(&format!(
        "stopped; the next `up` goes on from {}",
        host.dir.display()
    ));
    Ok(())
}

/// Plays the story.
pub(crate) fn demo(options: &DemoOptions) -> Result<()> {
    setup::packages()?;
    setup::wasm_target()?;
    setup::kernel()?;
    build::release()?;
    build::plugins()?;
    run(cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "e2e",
        "--bin",
        "xylem-demo",
    ]))?;
    let mut demo = Command::new(target().join("release/xylem-demo"));
    if options.keep {
        demo.arg("--keep");
    }
    run(demo)
}

struct UpHost {
    dir: PathBuf,
    bin: PathBuf,
    listen: SocketAddr,
}

impl UpHost {
    fn new(options: &Options) -> Result<Self> {
        let dir = root().join(&options.dir);
        fs::create_dir_all(dir.join("sr")).with_context(|| format!("making {}", dir.display()))?;
        let host = Self {
            dir,
            bin: target().join("release"),
            listen: options.listen,
        };
        fs::write(
            host.dir.join("xylemd.toml"),
            host.config(&options.hypervisor),
        )?;
        Ok(host)
    }

    fn config(&self, hypervisor: &str) -> String {
        let dir = self.dir.display();
        let plugins = target().join("plugins");
        let plugins = plugins.display();
        let listen = self.listen;
        format!(
            r#"# Written anew by every `cargo xtask up`.
[paths]
state_dir = "{dir}/state"
run_dir = "{dir}/run"
log_dir = "{dir}/log"
[log]
filter = "info"
format = "text"
[api]
http = ["{listen}"]
unix_socket = "{dir}/run/xapi"
[hypervisor]
backend = "{hypervisor}"
guest_kernel_dirs = ["{dir}/kernels"]
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
"#
        )
    }

    fn spawn(&self) -> Result<Child> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("xylemd.log"))?;
        Command::new(self.bin.join("xylemd"))
            .arg("--config")
            .arg(self.dir.join("xylemd.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Its own group: a Ctrl-C at the terminal reaches this process only.
            .process_group(0)
            .spawn()
            .context("starting xylemd")
    }

    fn wait_until_ready(&self, daemon: &mut Child) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = daemon.try_wait()? {
                bail!(
                    "xylemd ended with {status}; see {}",
                    self.dir.join("xylemd.log").display()
                );
            }
            if self
                .xe(&["host-list", "--minimal"])
                .is_ok_and(|uuid| !uuid.is_empty())
            {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!(
                    "xylemd does not answer; see {}",
                    self.dir.join("xylemd.log").display()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Makes the local SR at the first start and says what to try.
    fn greet(&self) -> Result<()> {
        if self
            .xe(&["sr-list", "name-label=Local storage", "--minimal"])?
            .is_empty()
        {
            let location = format!("device-config:location={}/sr/local", self.dir.display());
            fs::create_dir_all(self.dir.join("sr/local"))?;
            let sr = self.xe(&[
                "sr-create",
                "type=file",
                "name-label=Local storage",
                &location,
            ])?;
            let pool = self.xe(&["pool-list", "--minimal"])?;
            let uuid = format!("uuid={pool}");
            self.xe(&["pool-param-set", &uuid, &format!("default-SR={sr}")])?;
            say(&format!("made the SR \"Local storage\" ({sr})"));
        }
        self.print_password_once()?;
        let xe = shown(&self.bin.join("xe"));
        let socket = shown(&self.dir.join("run/xapi"));
        println!(
            "\nThe host answers at http://{} (XML-RPC, JSON-RPC, xe). Try:\n",
            self.listen
        );
        println!("  export XE_SOCKET={socket}      # local root needs no password");
        println!("  {xe} sr-list");
        println!(
            "  {xe} vdi-create name-label=disk1 virtual-size=1GiB \\\n      sr-uuid=$({xe} sr-list --minimal)"
        );
        println!("\nCtrl-C stops it and keeps its state.");
        Ok(())
    }

    fn print_password_once(&self) -> Result<()> {
        let file = self.dir.join("state/initial-password");
        let Ok(password) = fs::read_to_string(&file) else {
            return Ok(());
        };
        println!(
            "\nUser root, password {} (shown this once)",
            password.trim()
        );
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))
    }

    fn xe(&self, args: &[&str]) -> Result<String> {
        let mut xe = command(&self.bin.join("xe").to_string_lossy(), args);
        let out = xe.env("XE_SOCKET", self.dir.join("run/xapi")).output()?;
        if !out.status.success() {
            bail!(
                "xe {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }
}

/// A path as one would type it: relative to the checkout where it lies inside.
fn shown(path: &Path) -> String {
    let short = path.strip_prefix(root()).unwrap_or(path);
    short.display().to_string()
}

fn stop_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGCHLD);
    signals
}

fn wait_for_stop(signals: &SigSet, daemon: &mut Child) -> Result<()> {
    loop {
        let signal = signals.wait()?;
        if let Some(status) = daemon.try_wait()? {
            bail!("xylemd ended with {status}");
        }
        if signal != Signal::SIGCHLD {
            say("stopping");
            return Ok(());
        }
    }
}

fn stop(daemon: &mut Child) -> Result<()> {
    if daemon.try_wait()?.is_some() {
        return Ok(());
    }
    kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
    let begun = Instant::now();
    while daemon.try_wait()?.is_none() {
        if begun.elapsed() > PATIENCE {
            daemon.kill()?;
            bail!(
                "xylemd did not stop within {} s and was killed",
                PATIENCE.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
