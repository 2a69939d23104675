//! A plugin's file, taken once: what was checked is what runs, also after a restart.

use crate::PluginErrorKind;
use crate::manifest::Manifest;
use crate::protocol::Carrier;
use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

/// Largest artifact; a component with a Python interpreter inside has 18 MB.
const ARTIFACT_BYTES_MAX: u64 = 256 << 20;

/// A sealed copy in memory.
pub(crate) struct Artifact {
    pub(crate) carrier: Carrier,
    pub(crate) file: Arc<File>,
    pub(crate) sha256: String,
}

type Failure = (PluginErrorKind, String);

/// Copies `path` into sealed memory and compares its digest with the one the manifest pins.
pub(crate) async fn read(path: &Path, manifest: &Manifest) -> Result<Artifact, Failure> {
    let carrier = match path.extension().and_then(|extension| extension.to_str()) {
        Some("wasm") => Carrier::Component,
        Some("so") => Carrier::SharedObject,
        _ => {
            let message = format!("{} is neither .wasm nor .so", path.display());
            return Err((PluginErrorKind::Invalid, message));
        }
    };
    let owned = path.to_owned();
    let copied = tokio::task::spawn_blocking(move || seal(&owned)).await;
    let (file, sha256) = copied
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
        .map_err(|error| (PluginErrorKind::Io, format!("{}: {error}", path.display())))?;
    let pinned = match carrier {
        Carrier::Component => &manifest.sha256.wasm,
        Carrier::SharedObject => &manifest.sha256.so,
    };
    if let Some(pinned) = pinned
        .as_ref()
        .filter(|pinned| !pinned.eq_ignore_ascii_case(&sha256))
    {
        let message = format!("sha256 is {sha256}, the manifest says {pinned}");
        return Err((PluginErrorKind::Incompatible, message));
    }
    Ok(Artifact {
        carrier,
        file: Arc::new(file),
        sha256,
    })
}

fn seal(path: &Path) -> io::Result<(File, String)> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(ARTIFACT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > ARTIFACT_BYTES_MAX {
        return Err(io::Error::other(format!(
            "longer than {ARTIFACT_BYTES_MAX} bytes"
        )));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("xylem-plugin", flags)?);
    file.write_all(&bytes)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    let digest = Sha256::digest(&bytes);
    Ok((
        file,
        digest.iter().map(|byte| format!("{byte:02x}")).collect(),
    ))
}

/// Makes a directory that only its owner may list; others may pass through to what is theirs.
pub(crate) fn private_directory(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711))?;
    match owner {
        Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}
