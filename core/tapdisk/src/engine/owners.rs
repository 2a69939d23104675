//! Which layer below the leaf a block belongs to: one number per block, kept by pages, most of which
//! are all one layer's (or nobody's) and take no more than that number.

/// No layer below the leaf has this block.
pub(super) const NOBODY: u16 = u16::MAX;

const PAGE: usize = 128;

#[derive(Debug, Clone)]
enum Page {
    All(u16),
    Each(Box<[u16; PAGE]>),
}

/// The topmost layer below the leaf that has each block.
#[derive(Debug, Default)]
pub(super) struct Owners {
    pages: Vec<Page>,
}

impl Owners {
    #[inline]
    pub(super) fn get(&self, block: u32) -> u16 {
        let block = block as usize;
        match self.pages.get(block / PAGE) {
            None => NOBODY,
            Some(Page::All(layer)) => *layer,
            Some(Page::Each(layers)) => layers.get(block % PAGE).copied().unwrap_or(NOBODY),
        }
    }

    pub(super) fn set(&mut self, block: u32, layer: u16) {
        let (page, at) = (block as usize / PAGE, block as usize % PAGE);
        if page >= self.pages.len() {
            self.pages.resize(page + 1, Page::All(NOBODY));
        }
        let Some(page) = self.pages.get_mut(page) else {
            return;
        };
        if let Page::All(all) = page
            && *all != layer
        {
            *page = Page::Each(Box::new([*all; PAGE]));
        }
        if let Page::Each(layers) = page
            && let Some(slot) = layers.get_mut(at)
        {
            *slot = layer;
        }
    }

    /// Gives all blocks before `end` to a layer.
    pub(super) fn fill_to(&mut self, end: u32, layer: u16) {
        let whole = end as usize / PAGE;
        self.pages.truncate(whole.max(self.pages.len()));
        if self.pages.len() < whole {
            self.pages.resize(whole, Page::All(NOBODY));
        }
        let before = self.pages.iter_mut().take(whole);
        before.for_each(|page| *page = Page::All(layer));
        let rest = (whole * PAGE) as u32..end;
        rest.for_each(|block| self.set(block, layer));
    }

    /// Forgets all blocks from `first` on.
    pub(super) fn cut(&mut self, first: u32) {
        let whole = (first as usize).div_ceil(PAGE);
        self.pages.truncate(whole);
        let rest = first..u32::try_from(whole * PAGE).unwrap_or(u32::MAX);
        for block in rest {
            if self.get(block) != NOBODY {
                self.set(block, NOBODY);
            }
        }
    }

    /// Gives every block whose owner is `first` or a layer above it the owner that `owner_of` says,
    /// which is told the block and its present owner. Those that nobody has stay so.
    pub(super) fn renumber(&mut self, first: u16, owner_of: impl Fn(u32, u16) -> u16) {
        for (page, start) in self.pages.iter_mut().zip((0u32..).step_by(PAGE)) {
            if let Page::All(owner) = page {
                if *owner < first || *owner == NOBODY {
                    continue;
                }
                *page = Page::Each(Box::new([*owner; PAGE]));
            }
            let Page::Each(owners) = page else { continue };
            for (block, owner) in (start..).zip(owners.iter_mut()) {
                if *owner >= first && *owner != NOBODY {
                    *owner = owner_of(block, *owner);
                }
            }
        }
        self.tidy();
    }

    /// Gives back what pages take that have become all one layer's.
    pub(super) fn tidy(&mut self) {
        for page in &mut self.pages {
            if let Page::Each(layers) = page {
                let [first, rest @ ..] = &**layers;
                if rest.iter().all(|layer| layer == first) {
                    *page = Page::All(*first);
                }
            }
        }
        self.pages.shrink_to_fit();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let each = |page: &&Page| matches!(page, Page::Each(_));
        let each = self.pages.iter().filter(each).count();
        self.pages.capacity() * size_of::<Page>() + each * size_of::<[u16; PAGE]>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::Rng;

    #[test]
    fn pages_are_one_number_per_block_whatever_is_done_to_them() {
        const BLOCKS: u32 = 1000;
        let (mut owners, mut model) = (Owners::default(), vec![NOBODY; BLOCKS as usize]);
        let mut rng = Rng::new(5);
        for step in 0..2000 {
            let (block, layer) = (rng.below(u64::from(BLOCKS)) as u32, rng.below(3) as u16);
            let at = block as usize;
            match rng.below(20) {
                0 => {
                    owners.fill_to(block, layer);
                    model[..at].fill(layer);
                }
                1 if step % 5 == 0 => {
                    owners.cut(block);
                    model[at..].fill(NOBODY);
                }
                2 => owners.tidy(),
                3 => {
                    owners.renumber(1, |block, owner| owner % 100 + (block % 2) as u16);
                    for (block, owner) in (0u32..).zip(&mut model) {
                        if *owner != NOBODY && *owner >= 1 {
                            *owner = *owner % 100 + (block % 2) as u16;
                        }
                    }
                }
                _ => {
                    owners.set(block, layer);
                    model[at] = layer;
                }
            }
            let probe = rng.below(u64::from(BLOCKS)) as u32;
            assert_eq!(owners.get(probe), model[probe as usize]);
        }
        assert!((0..BLOCKS).all(|block| owners.get(block) == model[block as usize]));
        assert_eq!(owners.get(BLOCKS * 1000), NOBODY);
    }

    #[test]
    fn a_whole_disk_of_one_layer_takes_a_number_per_page() {
        let mut owners = Owners::default();
        (0..1 << 19).for_each(|block| owners.set(block, 3));
        owners.tidy();
        assert!(owners.memory_bytes() <= 64 << 10);
        assert_eq!((owners.get(0), owners.get((1 << 19) - 1)), (3, 3));
    }
}
