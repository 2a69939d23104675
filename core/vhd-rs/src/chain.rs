//! Chains: whether images given as child and parent belong together. The caller finds and opens
//! them; by which path is its own business.

use crate::{DiskType, Error, ErrorKind, Image};
use std::collections::HashSet;
use uuid::Uuid;

/// Longest chain accepted unless the caller says otherwise. Every open image costs memory and a
/// descriptor; XenServer stops at 30.
pub const CHAIN_DEPTH_MAX: usize = 1024;

/// One link of a chain.
#[derive(Debug, Clone, Copy)]
pub enum Layer<'a> {
    /// A VHD.
    Vhd(&'a Image),
    /// A raw disk, which can only be the base.
    Raw,
}

/// Checks that `parent` is the one `child` names. Sizes and times may differ: a shorter parent
/// reads as zeros beyond its end.
///
/// # Errors
/// `ParentMismatch` with the uuid expected; `Argument` if the child has no parent.
pub fn check_link(child: &Image, parent: Layer<'_>) -> Result<(), Error> {
    let Some(expected) = child.parent_uuid() else {
        let rule = "must be a differencing image to have a parent";
        return Err(Error::argument("child", child.uuid(), rule));
    };
    let mismatch = |value: String, rule: String| {
        Err(Error::new(
            ErrorKind::ParentMismatch,
            "parent.uuid",
            value,
            rule,
        ))
    };
    match parent {
        Layer::Raw if expected.is_nil() => Ok(()),
        Layer::Raw => mismatch(
            "none (raw)".into(),
            format!("{} names {expected}", child.uuid()),
        ),
        Layer::Vhd(image) if expected.is_nil() => mismatch(
            image.uuid().to_string(),
            format!("{} names a raw parent", child.uuid()),
        ),
        Layer::Vhd(image) if image.uuid() == expected => Ok(()),
        Layer::Vhd(image) => mismatch(
            image.uuid().to_string(),
            format!("{} names {expected}", child.uuid()),
        ),
    }
}

/// Checks a whole chain, leaf first: its length, that no image comes twice, each link, and that
/// the last layer needs no parent.
///
/// # Errors
/// `ChainTooDeep`, `ChainLoop`, `ParentMismatch`; `Argument` for an empty chain, for a layer below
/// one that has no parent, and for a chain that ends too early.
pub fn check_chain(layers: &[Layer<'_>], depth_max: usize) -> Result<(), Error> {
    if layers.is_empty() {
        return Err(Error::argument("chain", "empty", "must have a leaf"));
    }
    if layers.len() > depth_max {
        let rule = format!("chains are handled up to {depth_max} layers");
        return Err(Error::new(
            ErrorKind::ChainTooDeep,
            "chain depth",
            layers.len(),
            rule,
        ));
    }
    let mut seen: HashSet<Uuid> = HashSet::new();
    for (depth, layer) in layers.iter().enumerate() {
        let Layer::Vhd(image) = layer else {
            if depth + 1 < layers.len() {
                let rule = "only the last layer may be raw";
                return Err(Error::argument(format!("chain[{depth}]"), "raw", rule));
            }
            continue;
        };
        if !seen.insert(image.uuid()) {
            let rule = "an image comes only once in its chain";
            let field = format!("chain[{depth}].uuid");
            return Err(Error::new(ErrorKind::ChainLoop, field, image.uuid(), rule));
        }
        check_below(image, layers.get(depth + 1), depth)?;
    }
    Ok(())
}

fn check_below(image: &Image, below: Option<&Layer<'_>>, depth: usize) -> Result<(), Error> {
    match (image.disk_type(), below) {
        (DiskType::Differencing, Some(parent)) => {
            let own_child = matches!(parent, Layer::Vhd(next) if next.uuid() == image.uuid());
            // The next step reports the repetition, which says more than a mismatch.
            if own_child {
                Ok(())
            } else {
                check_link(image, *parent)
            }
        }
        (DiskType::Differencing, None) => {
            let rule = "must be followed by its parent";
            Err(Error::argument(
                format!("chain[{depth}]"),
                image.uuid(),
                rule,
            ))
        }
        (DiskType::Fixed | DiskType::Dynamic, Some(_)) => {
            let rule = "has no parent and must be the last layer";
            Err(Error::argument(
                format!("chain[{depth}]"),
                image.uuid(),
                rule,
            ))
        }
        (DiskType::Fixed | DiskType::Dynamic, None) => Ok(()),
    }
}
