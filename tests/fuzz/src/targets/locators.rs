//! Parent locators: any entry and any text in any encoding, and what is written decodes to what was
//! meant.

use crate::images;
use crate::input::Input;
use crate::oracle::{self, Medium};
use uuid::Uuid;
use vhd_rs::{
    Access, Allow, Content, ErrorKind, Extent, Header, Locator, LocatorCode, LocatorEntry,
    NewImage, OpenOptions, ParentLink, Timestamp,
};

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(3) {
        0 => any_entries(&mut input),
        1 => any_text(&mut input),
        _ => what_is_written(&mut input),
    }
}

/// A header with any entries is refused or comes out as it went in.
fn any_entries(input: &mut Input<'_>) {
    let mut header = [0u8; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[8..16].fill(0xFF);
    header[16..24].copy_from_slice(&1536u64.to_be_bytes());
    header[24..28].copy_from_slice(&0x0001_0000u32.to_be_bytes());
    header[28..32].copy_from_slice(&4u32.to_be_bytes());
    header[32..36].copy_from_slice(&0x0020_0000u32.to_be_bytes());
    for index in 0..8 {
        let entry = 576 + index * 24;
        let code: [u8; 4] = input.pick(&[
            [0; 4], *b"MacX", *b"W2ku", *b"W2ru", *b"Mac ", *b"Wi2r", *b"Wi2k", *b"????",
        ]);
        header[entry..entry + 4].copy_from_slice(&code);
        let (space, len) = (
            input.odd(&[512, 1024, 65_536]) as u32,
            input.odd(&[512]) as u32,
        );
        header[entry + 4..entry + 8].copy_from_slice(&space.to_be_bytes());
        header[entry + 8..entry + 12].copy_from_slice(&len.to_be_bytes());
        let offset = input.odd(&[4096]);
        header[entry + 16..entry + 24].copy_from_slice(&offset.to_be_bytes());
    }
    images::seal(&mut header, 36);
    let Ok(parsed) = Header::parse(&header) else {
        return;
    };
    let again = parsed.to_bytes().expect("it has no name");
    assert_eq!(Header::parse(&again).expect("it was one"), parsed);
    for entry in parsed
        .locators
        .iter()
        .filter(|entry| entry.code != LocatorCode::None)
    {
        assert!(u64::from(entry.data_len) <= entry.space_bytes());
    }
}

/// Any bytes decode as the oracle decodes them.
fn any_text(input: &mut Input<'_>) {
    let code = input.pick(&[*b"MacX", *b"W2ku", *b"W2ru"]);
    let name = String::from_utf8_lossy(&input.bytes(80)).into_owned();
    let mut data = if input.one_in(2) {
        images::encode_path(&code, &name)
    } else {
        name.into_bytes()
    };
    data.extend(input.bytes(4));
    let kind = match &code {
        b"MacX" => LocatorCode::MacX,
        b"W2ku" => LocatorCode::W2ku,
        _ => LocatorCode::W2ru,
    };
    let entry = LocatorEntry {
        code: kind,
        data_space: 512,
        data_len: data.len() as u32,
        data_offset: 4096,
    };
    let limit = 1024 + 8 * data.len() as u64;
    let wanted = decode(&code, &data);
    let locator = Locator {
        index: 0,
        entry,
        data,
    };
    let found = crate::guard::bounded("a path", limit, || locator.path());
    assert_eq!(found.ok(), wanted, "{:?}", locator.data);
}

/// The rules again: a URL without percent-encoding, or UTF-16LE with backslashes and a drive that
/// means nothing; zeros at the end are padding.
fn decode(code: &[u8; 4], data: &[u8]) -> Option<String> {
    let text = if code == b"MacX" {
        let text = String::from_utf8(data.to_vec()).ok()?;
        text.trim_end_matches('\0')
            .strip_prefix("file://")?
            .to_owned()
    } else {
        if data.len() % 2 == 1 {
            return None;
        }
        let units: Vec<u16> = data
            .chunks(2)
            .map(|pair| u16::from(pair[0]) + 256 * u16::from(pair[1]))
            .collect();
        let text = String::from_utf16(&units).ok()?;
        let text = text.trim_end_matches('\0').replace('\\', "/");
        match text.as_bytes() {
            [b'C' | b'c', b':', ..] => text[2..].to_owned(),
            _ => text,
        }
    };
    (!text.is_empty() && !text.contains('\0')).then_some(text)
}

/// A child of any path names its parent in three ways, all the same, also after it got another.
fn what_is_written(input: &mut Input<'_>) {
    let (first, second) = (path(input), path(input));
    let new = NewImage {
        uuid: Uuid::from_bytes(images::uuid(1)),
        created: Timestamp(1),
        virtual_bytes: 4 << 20,
        resize_max_bytes: 0,
        content: Content::Differencing(link(&first)),
        extent: Extent::Grows,
        container_bytes: 0,
    };
    let Ok(plan) = new.plan() else { return };
    let mut medium = Medium::default();
    plan.apply(&mut medium).expect("memory takes writes");
    let options = OpenOptions {
        extent: Extent::Grows,
        access: Access::ReadWrite,
    };
    let mut image = oracle::open(&medium, options, Allow::default()).expect("a new image opens");
    names(&image, &first);
    match image.reparent_plan(&link(&second)) {
        Err(e) => assert!(
            matches!(e.kind(), ErrorKind::NameTooLong | ErrorKind::Argument),
            "{e}"
        ),
        Ok(plan) => {
            plan.apply(&mut medium).expect("memory takes writes");
            let again = oracle::open(&medium, options, Allow::default()).expect("it opened before");
            names(&again, &second);
        }
    }
}

fn path(input: &mut Input<'_>) -> String {
    let mut path = String::from(input.pick(&["", "./", "../", "/", "/dev/mapper/", "../../x/"]));
    path.push_str(&String::from_utf8_lossy(&input.bytes(300)));
    path
}

fn link(path: &str) -> ParentLink {
    ParentLink {
        path: path.to_owned(),
        uuid: Uuid::from_bytes(images::uuid(2)),
        modified: Timestamp(2),
    }
}

fn names(image: &vhd_rs::Image, path: &str) {
    let anchored = ["./", "../", "/"]
        .iter()
        .any(|start| path.starts_with(start));
    let wanted = if anchored {
        path.to_owned()
    } else {
        format!("./{path}")
    };
    assert_eq!(image.locators().len(), 3);
    for locator in image.locators() {
        let found = locator.path().expect("it was written here");
        // The Windows forms are relative by the letter: "../x" is written as "./../x".
        let found = if wanted.starts_with("../") {
            found.trim_start_matches("./").to_owned()
        } else {
            found
        };
        assert_eq!(found, wanted);
    }
    let name = wanted.rsplit('/').next();
    assert_eq!(
        image.header().map(|header| header.parent_name.as_str()),
        name
    );
}
