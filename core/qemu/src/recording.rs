//! The files a running QEMU appends to: reading why a guest ended, and keeping them small.

use crate::process::io;
use hypervisor::{Error, ShutdownReason};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// How much of a file's end is looked at or kept.
const TAIL_BYTES: u64 = 256 * units::KIB;

/// What an event says about the end of the guest; `None` if nothing.
///
/// # Source
/// QEMU, qapi/run-state.json, `ShutdownCause`.
pub(crate) fn end_by_event(name: &str, data: &Value) -> Option<ShutdownReason> {
    match (name, data.get("reason").and_then(Value::as_str)) {
        ("GUEST_PANICKED", _) | ("SHUTDOWN", Some("guest-panic")) => Some(ShutdownReason::Crash),
        ("SHUTDOWN", Some("guest-reset")) => Some(ShutdownReason::Reboot),
        ("SHUTDOWN", Some("guest-shutdown")) => Some(ShutdownReason::Poweroff),
        _ => None,
    }
}

/// Finds in a recording how the guest ended. The first end counts: nothing runs after it.
pub(crate) fn end_by_recording(path: &Path) -> Option<ShutdownReason> {
    let text = tail(path).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().find_map(|line| {
        let event: Value = serde_json::from_str(line).ok()?;
        let data = event.get("data").cloned().unwrap_or_default();
        end_by_event(event.get("event")?.as_str()?, &data)
    })
}

fn tail(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail)
}

/// Cuts a file that has grown past a limit down to nothing and keeps its end in `<path>.old`. The
/// writer appends, so it goes on at the new end.
pub(crate) fn cut(path: &Path, limit_bytes: u64) -> Result<(), Error> {
    let len = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at", path, error)),
    };
    if len <= limit_bytes {
        return Ok(());
    }
    let cut = || {
        let mut old = path.as_os_str().to_owned();
        old.push(".old");
        let mut old = File::create(old)?;
        old.write_all(&tail(path)?)?;
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)?
            .set_len(0)
    };
    cut().map_err(|error| io("cut", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_among_other_events() {
        let noise = r#"{"event": "RTC_CHANGE", "data": {"offset": 1}}"#;
        let cases = [
            (
                r#"{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}"#,
                ShutdownReason::Poweroff,
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}"#,
                ShutdownReason::Reboot,
            ),
            (
                r#"{"event": "GUEST_PANICKED", "data": {"action": "pause"}}"#,
                ShutdownReason::Crash,
            ),
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.log");
        let quit = r#"{"event": "SHUTDOWN", "data": {"reason": "host-qmp-quit"}}"#;
        for (event, reason) in cases {
            let text = format!("{noise}\ncut {{ short\n{event}\n{noise}\n{quit}\n{{\"ev");
            std::fs::write(&path, text).unwrap();
            assert_eq!(end_by_recording(&path), Some(reason));
        }
        std::fs::write(&path, quit).unwrap();
        assert_eq!(end_by_recording(&path), None);
        assert_eq!(end_by_recording(&dir.path().join("none")), None);
    }

    #[test]
    fn a_file_is_cut_under_its_writer_and_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut writer = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        let text = vec![b'x'; TAIL_BYTES as usize];
        writer.write_all(b"first").unwrap();
        writer.write_all(&text).unwrap();
        cut(&path, 2 * TAIL_BYTES).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), TAIL_BYTES + 5);
        cut(&path, TAIL_BYTES).unwrap();
        assert_eq!(
            std::fs::read(dir.path().join("console.log.old")).unwrap(),
            text
        );
        writer.write_all(b"next").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"next");
        cut(&dir.path().join("none"), 1).unwrap();
    }
}
