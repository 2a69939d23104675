//! Cylinder-head-sector geometry: stored in every footer, believed by nobody. The capacity of a
//! disk is the footer's `current size`, never its geometry.

/// A drive geometry as the footer stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors_per_track: u8,
}

const TRACKS_MAX: u32 = 65_535 * 16;

impl Geometry {
    /// Computes the geometry of a disk of `virtual_bytes`, rounding down.
    ///
    /// The sector count is taken modulo 2^32, because the tools that check images do the same and
    /// refuse a geometry larger than the one they compute.
    ///
    /// # Source
    /// VHD 1.0, appendix "CHS Calculation".
    pub fn of_size(virtual_bytes: u64) -> Self {
        let wrapped = virtual_bytes.div_ceil(512) & u64::from(u32::MAX);
        let sectors = wrapped.min(u64::from(TRACKS_MAX) * 255) as u32;
        let (spt, heads, cylinders_times_heads) = if sectors >= TRACKS_MAX * 63 {
            (255, 16, sectors / 255)
        } else {
            Self::below_32_gib(sectors)
        };
        Self {
            cylinders: (cylinders_times_heads / heads) as u16,
            heads: heads as u8,
            sectors_per_track: spt as u8,
        }
    }

    fn below_32_gib(sectors: u32) -> (u32, u32, u32) {
        let mut spt = 17;
        let mut tracks = sectors / spt;
        let mut heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (spt, heads) = (31, 16);
            tracks = sectors / spt;
        }
        if tracks >= heads * 1024 {
            (spt, heads) = (63, 16);
            tracks = sectors / spt;
        }
        (spt, heads, tracks)
    }

    pub(crate) fn from_bytes(bytes: [u8; 4]) -> Self {
        let [high, low, heads, sectors_per_track] = bytes;
        Self {
            cylinders: u16::from_be_bytes([high, low]),
            heads,
            sectors_per_track,
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; 4] {
        let [high, low] = self.cylinders.to_be_bytes();
        [high, low, self.heads, self.sectors_per_track]
    }
}

#[cfg(test)]
mod tests {
    use super::Geometry;

    #[test]
    fn measured_sizes_have_their_measured_geometry() {
        let mib = 1 << 20;
        for (size_mib, expected) in [
            (64, (963, 8, 17)),
            (128, (963, 16, 17)),
            (512, (1040, 16, 63)),
            (1024, (2080, 16, 63)),
            (4096, (8322, 16, 63)),
            (65_536, (32_896, 16, 255)),
            (131_072, (65_535, 16, 255)),
            (2_088_960, (65_535, 16, 255)),
        ] {
            let got = Geometry::of_size(size_mib * mib);
            assert_eq!(
                (got.cylinders, got.heads, got.sectors_per_track),
                expected,
                "{size_mib} MiB"
            );
        }
    }
}
