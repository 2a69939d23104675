//! What the machine needs before anything can run, and how it is got on Debian.

use crate::step::{command, output, root, run, say, target};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that must be there, and the Debian package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("busybox", "busybox-static"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("vgcreate", "lvm2"),
    ("python3", "python3"),
    ("dpkg-deb", "dpkg"),
];

/// What `bench` needs on top.
const BENCH_PROGRAMS: &[(&str, &str)] = &[
    ("fio", "fio"),
    ("nbdcopy", "libnbd-bin"),
    ("qemu-nbd", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("perf", "linux-perf"),
    ("strace", "strace"),
];

/// What `fuzz` needs on top: libFuzzer is C++.
const FUZZ_PROGRAMS: &[(&str, &str)] = &[("g++", "g++")];

/// PyPI's XenAPI, the reference client; pinned so that a new release cannot change a test's meaning.
const PYTHON_XENAPI: &str = "XenAPI==26.21.1";

/// Does all of the set-up.
pub(crate) fn everything() -> Result<()> {
    packages()?;
    wasm_target()?;
    kernel()?;
    python()
}

/// Installs missing Debian packages and says which.
pub(crate) fn packages() -> Result<()> {
    let mut missing = packages_missing(PROGRAMS);
    if !python_can_make_environments() {
        missing.push("python3-venv");
    }
    install(missing)
}

/// Installs the Debian packages that measuring needs and says which.
pub(crate) fn bench_packages() -> Result<()> {
    install(packages_missing(BENCH_PROGRAMS))
}

/// Installs the Debian packages that fuzzing needs and says which.
pub(crate) fn fuzz_packages() -> Result<()> {
    install(packages_missing(FUZZ_PROGRAMS))
}

fn packages_missing(programs: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    programs
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect()
}

fn install(mut missing: Vec<&str>) -> Result<()> {
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        bail!(
            "missing: {}; this is not a Debian system, so install what the README's table names \
             for yours",
            missing.join(", ")
        );
    }
    say(&format!(
        "installing Debian packages: {}",
        missing.join(" ")
    ));
    run(apt(&["update", "-qq"]))?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(&missing);
    run(apt(&args))
}

/// Adds the target that plugins are compiled to as components.
pub(crate) fn wasm_target() -> Result<()> {
    let sysroot = output(command("rustc", &["--print", "sysroot"]))?;
    if Path::new(sysroot.trim())
        .join("lib/rustlib/wasm32-wasip2")
        .exists()
    {
        return Ok(());
    }
    run(command("rustup", &["target", "add", "wasm32-wasip2"]))
        .context("the target wasm32-wasip2 is needed to build plugins as components")
}

/// Puts Debian's kernel and its modules into `target/test-kernel`, without installing it.
pub(crate) fn kernel() -> Result<()> {
    let dir = target().join("test-kernel");
    if dir.join("vmlinuz").exists() && dir.join("modules").exists() {
        return Ok(());
    }
    say("fetching Debian's kernel as a guest for the tests (not installed, only unpacked)");
    let scratch = target().join("test-kernel.new");
    remove(&scratch)?;
    fs::create_dir_all(&scratch)?;
    if find("apt-get").is_none() {
        bail!(
            "put a Linux kernel at {0}/vmlinuz and its modules at {0}/modules",
            dir.display()
        );
    }
    let depends = output(command("apt-cache", &["depends", "linux-image-amd64"]))?;
    let package = match kernel_package(&depends) {
        Some(package) => package.to_owned(),
        None => {
            run(apt(&["update", "-qq"]))?;
            let depends = output(command("apt-cache", &["depends", "linux-image-amd64"]))?;
            kernel_package(&depends)
                .context("apt knows no linux-image-amd64")?
                .to_owned()
        }
    };
    let mut download = Command::new("apt-get");
    download
        .args(["download", "-qq", &package])
        .current_dir(&scratch);
    run(download)?;
    let deb = first_with_suffix(&scratch, ".deb")?;
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(&deb).arg(scratch.join("root"));
    run(unpack)?;
    let boot = scratch.join("root/boot");
    let image = first_with_prefix(&boot, "vmlinuz-")?;
    fs::rename(&image, scratch.join("vmlinuz"))?;
    let modules = scratch.join("root/lib/modules");
    let modules = if modules.exists() {
        modules
    } else {
        scratch.join("root/usr/lib/modules")
    };
    fs::rename(first_with_prefix(&modules, "")?, scratch.join("modules"))?;
    remove(&scratch.join("root"))?;
    fs::remove_file(&deb)?;
    remove(&dir)?;
    fs::rename(&scratch, &dir).context("putting the test kernel in place")
}

/// Makes a Python environment with the reference client in `target/python`.
pub(crate) fn python() -> Result<()> {
    let dir = target().join("python");
    let stamp = dir.join("xylem-ready");
    if fs::read_to_string(&stamp).is_ok_and(|have| have == PYTHON_XENAPI) {
        return Ok(());
    }
    say("making a Python environment with PyPI's XenAPI for the client tests");
    remove(&dir)?;
    let path = dir.to_string_lossy().into_owned();
    run(command("python3", &["-m", "venv", &path]))?;
    let pip = dir.join("bin/pip").to_string_lossy().into_owned();
    run(command(
        &pip,
        &[
            "install",
            "--quiet",
            "--disable-pip-version-check",
            PYTHON_XENAPI,
        ],
    ))?;
    fs::write(&stamp, PYTHON_XENAPI)?;
    Ok(())
}

fn python_can_make_environments() -> bool {
    let probe = Command::new("python3")
        .args(["-c", "import venv, ensurepip"])
        .output();
    probe.is_ok_and(|out| out.status.success())
}

fn apt(args: &[&str]) -> Command {
    let is_root = nix::unistd::geteuid().is_root();
    let mut command = if is_root {
        Command::new("apt-get")
    } else {
        Command::new("sudo")
    };
    if !is_root {
        command.arg("apt-get");
    }
    command
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir(root());
    command
}

/// Finds a program on the path, or where root's tools lie.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn kernel_package(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
}

fn first_with_prefix(dir: &Path, prefix: &str) -> Result<PathBuf> {
    first(dir, |name| name.starts_with(prefix))
}

fn first_with_suffix(dir: &Path, suffix: &str) -> Result<PathBuf> {
    first(dir, |name| name.ends_with(suffix))
}

fn first(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&wanted) {
            return Ok(entry.path());
        }
    }
    bail!("nothing fitting in {}", dir.display())
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
