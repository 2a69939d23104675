//! Opening any image: it is refused or answers as the naive reader does, and closing it makes it
//! whole.

use crate::images::{self, Made, Wish};
use crate::input::Input;
use crate::oracle::{self, Medium, ORACLE_BYTES_MAX, OnDisk};
use vhd_checker::Strictness;
use vhd_rs::{Access, Allow, ErrorKind, Extent, Image, OpenOptions, VIRTUAL_BYTES_MAX};

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut made = make(&mut input);
    let damaged = !input.one_in(4) && !input.is_used_up();
    if damaged {
        images::damage(&mut input, &mut made);
    }
    let extent = if input.one_in(4) {
        Extent::Reserved
    } else {
        Extent::Grows
    };
    let allow = Allow {
        encrypted: input.one_in(2),
        poisoned: input.one_in(4),
        footer_copy: input.one_in(8),
    };
    let read_only = OpenOptions {
        extent,
        access: Access::ReadOnly,
    };
    if let Ok(image) = oracle::open(&made.medium, read_only, allow) {
        look_at(&image);
    }
    if extent == Extent::Grows && !allow.footer_copy {
        agree(&made);
    }
    change(&mut input, &made.medium, extent, damaged);
}

fn make(input: &mut Input<'_>) -> Made {
    let parent = match input.below(4) {
        0 | 1 => None,
        2 => Some(images::uuid(9)),
        _ => Some([0; 16]),
    };
    if input.one_in(8) {
        return images::fixed(input, 1);
    }
    let wish = Wish {
        number: 1,
        parent,
        blocks_max: 6,
        by_tap: false,
    };
    images::sparse(input, wish)
}

/// Everything that is asked of an image, wherever it came from.
fn look_at(image: &Image) {
    for block in [
        0,
        1,
        2,
        3,
        image.blocks().saturating_sub(1),
        image.blocks(),
        u32::MAX,
    ] {
        let _ = image.block(block);
        let _ = image.bat_sector(block);
    }
    let _ = (
        image.parent_path(),
        image.parent_uuid(),
        image.marker(),
        image.keyhash(),
    );
    let _ = (
        image.allocated_blocks(),
        image.resize_max_bytes(),
        image.end_of_data_bytes(),
    );
    let _ = image
        .locators()
        .iter()
        .map(vhd_rs::Locator::path)
        .filter(Result::is_ok)
        .count();
    assert!(image.resize_max_bytes() >= image.virtual_bytes());
    assert!(image.footer().to_bytes().len() == 512);
}

/// What the checker calls sound opens, and reads as the naive reader reads it.
fn agree(made: &Made) {
    let content = &made.medium.0;
    if content.size_bytes() > ORACLE_BYTES_MAX || made.layout.size > ORACLE_BYTES_MAX {
        return;
    }
    let sound = oracle::report(content, Strictness::AfterCrash).is_sound();
    let options = OpenOptions {
        extent: Extent::Grows,
        access: Access::ReadWrite,
    };
    let allow = Allow {
        encrypted: true,
        ..Allow::default()
    };
    let image = match oracle::open(&made.medium, options, allow) {
        Ok(image) => image,
        Err(e) if !sound || is_policy(&e) => return,
        Err(e) => panic!("the checker calls it sound, and it does not open: {e}"),
    };
    if !sound {
        return;
    }
    let naive = oracle::naive(&[OnDisk::new(content)]).expect("a sound image");
    assert_eq!(naive.size_bytes, image.virtual_bytes());
    for sector in oracle::sectors_to_see(&image) {
        let found = oracle::sector_of(&image, content, sector).unwrap_or([0; 512]);
        let wanted = naive.sector(sector).expect("memory can be read");
        assert_eq!(found, wanted, "sector {sector}");
    }
}

/// Refusals that are a choice, not a finding: sizes beyond the limits, images of a resize.
fn is_policy(error: &vhd_rs::Error) -> bool {
    let too_large = error.kind() == ErrorKind::Unsupported
        && error
            .value()
            .parse::<u64>()
            .is_ok_and(|size| size > VIRTUAL_BYTES_MAX);
    too_large || error.kind() == ErrorKind::Poisoned
}

/// Every change of an image as a whole leaves one that opens and holds the same.
fn change(input: &mut Input<'_>, medium: &Medium, extent: Extent, damaged: bool) {
    let options = OpenOptions {
        extent,
        access: Access::ReadWrite,
    };
    let allow = Allow {
        encrypted: true,
        ..Allow::default()
    };
    let Ok(mut image) = oracle::open(medium, options, allow) else {
        return;
    };
    let small = medium.0.size_bytes() <= ORACLE_BYTES_MAX;
    let sound = small && oracle::report(&medium.0, Strictness::AfterCrash).is_sound();
    let size = image.virtual_bytes();
    let before = contents(&image, medium, size);
    let plan = match input.below(7) {
        0 => image.close_plan(),
        1 => image.hide_plan(true),
        2 => image.marker_plan(7),
        3 => image.resize_plan(size.saturating_add(input.pick(&[0, 512, 2 << 20, 1 << 40]))),
        4 => image.in_use_plan(),
        5 => image.repair_plan(uuid::Uuid::from_bytes(images::uuid(3))),
        _ => image.batmap_plan(),
    };
    let Ok(plan) = plan else { return };
    let mut after = medium.clone();
    plan.apply(&mut after).expect("memory takes writes");
    let closes = plan_closes(&image, &plan);
    let again = oracle::open(&after, options, allow);
    let again = again.unwrap_or_else(|e| panic!("after {}: {e}", shown(&plan)));
    assert!(again.virtual_bytes() >= size);
    assert_eq!(contents(&again, &after, size), before);
    if sound && closes && extent == Extent::Grows {
        let mut report = oracle::report(&after.0, Strictness::Closed);
        // What the footer at offset 0 says of it may count, which the checker knows nothing of.
        report
            .problems
            .retain(|problem| !problem.0.starts_with("hidden is "));
        // Nor that a batmap's claim on the rest of the world is not taken at its word.
        if damaged {
            report
                .problems
                .retain(|problem| !problem.0.starts_with("file has "));
        }
        assert!(
            report.is_sound(),
            "after {}: {:?}",
            shown(&plan),
            report.problems
        );
    }
}

/// A plan without its bytes.
fn shown(plan: &vhd_rs::Plan) -> String {
    let step = |step: &vhd_rs::Step| match step {
        vhd_rs::Step::Write { offset, bytes } => format!("{} bytes at {offset}", bytes.len()),
        other => format!("{other:?}"),
    };
    plan.steps.iter().map(step).collect::<Vec<_>>().join(", ")
}

fn plan_closes(image: &Image, plan: &vhd_rs::Plan) -> bool {
    image.is_clean() && !plan.steps.is_empty()
}

/// What some of the sectors below `size` hold.
fn contents(image: &Image, medium: &Medium, size: u64) -> Vec<Option<[u8; 512]>> {
    let bat = image
        .bat()
        .map(|bat| bat.allocated().map(|(block, _)| block).collect::<Vec<_>>());
    let per_block = u64::from(image.block_bytes()) / 512;
    let blocks = bat.unwrap_or_else(|| vec![0]).into_iter().take(8);
    let sectors =
        blocks.flat_map(|block| [0, 1, 7, 63, 100].map(|n| u64::from(block) * per_block + n));
    sectors
        .filter(|sector| *sector < size / 512)
        .map(|sector| oracle::sector_of(image, &medium.0, sector))
        .collect()
}
