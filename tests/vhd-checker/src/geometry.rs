//! The largest geometry a footer may store, computed step by step as the specification tells it.

/// Cylinders, heads and sectors per track packed as the footer packs them.
pub(crate) fn largest(size: u64) -> u64 {
    let mut total = size.div_ceil(512) % (1 << 32);
    if total > 65535 * 16 * 255 {
        total = 65535 * 16 * 255;
    }
    let (mut per_track, mut heads, mut cyl_heads);
    if total >= 65535 * 16 * 63 {
        per_track = 255;
        heads = 16;
        cyl_heads = total / per_track;
    } else {
        per_track = 17;
        cyl_heads = total / per_track;
        heads = cyl_heads.div_ceil(1024);
        if heads < 4 {
            heads = 4;
        }
        if cyl_heads >= heads * 1024 || heads > 16 {
            per_track = 31;
            heads = 16;
            cyl_heads = total / per_track;
        }
        if cyl_heads >= heads * 1024 {
            per_track = 63;
            heads = 16;
            cyl_heads = total / per_track;
        }
    }
    (cyl_heads / heads) << 16 | heads << 8 | per_track
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_gibibyte_has_the_geometry_the_tools_give_it() {
        assert_eq!(super::largest(1 << 30), 2080 << 16 | 16 << 8 | 63);
    }
}
