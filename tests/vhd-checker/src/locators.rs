//! What a differencing image says about its parent's name.

use crate::raw::{Raw, num, text, zero};
use std::io;

/// A locator's bytes in the header and whatever is wrong with it.
pub(crate) struct Found {
    pub(crate) at: u64,
    pub(crate) space: u64,
    pub(crate) code: [u8; 4],
    pub(crate) path: Option<String>,
    pub(crate) wrong: Option<String>,
}

/// Reads all used locators of a header.
pub(crate) fn read(raw: &Raw, header: &[u8]) -> io::Result<Vec<Found>> {
    let mut out = Vec::new();
    for i in 0..8 {
        let entry = text(header, 576 + i * 24, 24);
        if zero(entry, 0, 24) {
            continue;
        }
        out.push(one(raw, entry, i)?);
    }
    Ok(out)
}

fn one(raw: &Raw, entry: &[u8], i: usize) -> io::Result<Found> {
    let mut code = [0; 4];
    code.copy_from_slice(text(entry, 0, 4));
    let stored = num(entry, 4, 4);
    let len = num(entry, 8, 4);
    let at = num(entry, 16, 8);
    let space = match stored {
        s if s < 512 => s * 512,
        s if s % 512 == 0 => s,
        _ => 0,
    };
    let mut found = Found {
        at,
        space,
        code,
        path: None,
        wrong: None,
    };
    let known = [b"MacX", b"W2ku", b"W2ru", b"Mac ", b"Wi2r", b"Wi2k"].contains(&&code);
    let wrong = if !known {
        format!("has the unknown code {code:?}")
    } else if space == 0 {
        format!("has the space {stored}")
    } else if len > space {
        format!("has {len} bytes in a space of {space}")
    } else if at.checked_add(space).is_none_or(|end| end > raw.len) {
        format!("lies at byte {at}, beyond the file")
    } else {
        found.path = decode(&code, &raw.piece(at, len)?);
        match &found.path {
            Some(_) => return Ok(found),
            None => "does not decode".to_string(),
        }
    };
    found.wrong = Some(format!("locator {i} {wrong}"));
    Ok(found)
}

fn decode(code: &[u8; 4], data: &[u8]) -> Option<String> {
    if code == b"MacX" {
        let s = String::from_utf8(data.to_vec()).ok()?;
        return Some(s.strip_prefix("file://")?.to_string());
    }
    if data.len() % 2 == 1 {
        return None;
    }
    let mut units = Vec::new();
    for pair in data.chunks(2) {
        units.push(u16::from(pair[0]) | u16::from(pair[1]) << 8);
    }
    Some(String::from_utf16(&units).ok()?.replace('\\', "/"))
}

/// The parent's name stored in the header itself.
pub(crate) fn stored_name(header: &[u8]) -> Option<String> {
    let mut units = Vec::new();
    for i in 0..256 {
        match num(header, 64 + 2 * i, 2) {
            0 => break,
            u => units.push(u as u16),
        }
    }
    String::from_utf16(&units).ok()
}
