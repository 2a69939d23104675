//! The images: the same random bytes as a raw file, our VHD, a copy of it, and a qcow2.

use crate::kind::{Family, Kind};
use crate::ours::Cache;
use crate::process;
use crate::random::Random;
use crate::server::Servers;
use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// How long making one image may take.
const MAKE: Duration = Duration::from_secs(300);

const CHUNK_BYTES: usize = 1 << 20;

/// Makes all images in `dir`, filled with the same bytes.
///
/// # Errors
/// When the file system or a tool fails.
pub(crate) async fn make_full(servers: &Servers, dir: &Path, bytes: u64) -> Result<()> {
    let raw = dir.join(Family::QemuRaw.file());
    write_random(&raw, bytes)?;
    make_empty(servers, Family::Ours, dir, bytes).await?;
    let server = servers.start(Kind::OURS, dir, Cache::Page).await?;
    let mut copy = Command::new("nbdcopy");
    copy.arg("--flush").arg(&raw).arg(&server.uri);
    process::output(copy, MAKE).await?;
    server.stop().await?;
    let ours = dir.join(Family::Ours.file());
    fs::copy(&ours, dir.join(Family::QemuVpc.file())).context("copying the VHD")?;
    let mut convert = Command::new("qemu-img");
    convert
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &dir.join(Family::QemuQcow2.file())]);
    process::output(convert, MAKE).await?;
    for kind in [
        Family::QemuRaw,
        Family::Ours,
        Family::QemuVpc,
        Family::QemuQcow2,
    ] {
        File::open(dir.join(kind.file()))?.sync_all()?;
    }
    Ok(())
}

/// Makes the image of one kind, with nothing in it, in place of the one that is there.
///
/// # Errors
/// When the file system or a tool fails.
pub(crate) async fn make_empty(
    servers: &Servers,
    kind: Family,
    dir: &Path,
    virtual_bytes: u64,
) -> Result<()> {
    let image = dir.join(kind.file());
    match fs::remove_file(&image) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("removing {}", image.display()));
        }
        _ => {}
    }
    match kind {
        Family::Ours | Family::QemuVpc => {
            let ours = servers.ours().await?;
            ours.create(&image, virtual_bytes, None).await?;
            ours.stop().await
        }
        Family::QemuQcow2 => {
            let mut create = Command::new("qemu-img");
            create
                .args(["create", "-q", "-f", "qcow2"])
                .arg(&image)
                .arg(virtual_bytes.to_string());
            process::output(create, MAKE).await.map(drop)
        }
        _ => Ok(File::create(&image)?.set_len(virtual_bytes)?),
    }
}

/// Reads the images once, so that all of them are in the page cache.
///
/// # Errors
/// Those of the files.
pub(crate) fn warm(dir: &Path, kinds: &[Family]) -> Result<()> {
    for kind in kinds {
        let mut image = File::open(dir.join(kind.file()))?;
        io::copy(&mut image, &mut io::sink())?;
    }
    Ok(())
}

/// Drops an image from the page cache, for a server that has no `O_DIRECT` and would otherwise
/// read memory while the others read the disk.
///
/// # Errors
/// Those of the file.
pub(crate) fn evict(image: &Path) -> Result<()> {
    let file = File::open(image).with_context(|| format!("opening {}", image.display()))?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// Has everything that was written to an image on its medium.
///
/// # Errors
/// Those of the file.
pub(crate) fn settle(image: &Path) -> Result<()> {
    let file = File::open(image).with_context(|| format!("opening {}", image.display()))?;
    Ok(file.sync_all()?)
}

/// Bytes a file takes on its file system.
///
/// # Errors
/// Those of the file system.
pub(crate) fn used_bytes(image: &Path) -> Result<u64> {
    let metadata = fs::metadata(image).with_context(|| format!("{}", image.display()))?;
    Ok(metadata.blocks().saturating_mul(512))
}

fn write_random(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    let mut random = Random::new(1);
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    let mut left = bytes;
    while left > 0 {
        chunk.clear();
        while chunk.len() < CHUNK_BYTES {
            chunk.extend_from_slice(&random.next().to_le_bytes());
        }
        let now = left.min(CHUNK_BYTES as u64);
        file.write_all(chunk.get(..now as usize).context("a chunk")?)?;
        left = left.saturating_sub(now);
    }
    Ok(file.sync_all()?)
}
