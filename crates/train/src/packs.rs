//! Parameters in packs of equal size: what changes each number on its own takes many small parameters at a time, or a large one piece by
//! piece.

use pulid::runtime::Reporter;
use pulid_engine::Observer;
use std::ops::Range;

/// Numbers of a pack at most: more do not make a network faster, and its values stand beside what is trained.
const MOST: usize = 1 << 20;

/// Consecutive numbers of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which parameter.
    pub parameter: usize,
    /// Which of its numbers.
    pub range: Range<usize>,
    /// Where they begin in the pack.
    pub at: usize,
}

/// How many numbers a pack of parameters of so many numbers has.
pub(crate) fn size(counts: impl Iterator<Item = usize>) -> usize {
    counts.fold(0, usize::saturating_add).clamp(1, MOST)
}

/// Parameters of so many numbers one after another in packs of `size` numbers, of which the last may not be full.
pub(crate) fn packs(counts: impl Iterator<Item = usize>, size: usize) -> Vec<Vec<Piece>> {
    let (mut packs, mut full) = (Vec::new(), size);
    for (parameter, count) in counts.enumerate() {
        let mut first = 0;
        while first < count {
            if full == size {
                packs.push(Vec::new());
                full = 0;
            }
            let taken = (count - first).min(size - full);
            if let Some(pack) = packs.last_mut() {
                pack.push(Piece { parameter, range: first..first + taken, at: full });
            }
            (first, full) = (first + taken, full + taken);
        }
    }
    packs
}

/// An update is done whole or, where the device fails, told: Ctrl-C waits for it.
pub(crate) struct Unstoppable<'a>(pub &'a dyn Reporter);

impl Observer for Unstoppable<'_> {}

impl Unstoppable<'_> {
    /// So many parts of the update are done.
    pub fn done(&self, done: usize, total: usize) {
        self.0.progress(done as u64, total as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once_and_in_order() {
        let counts = [3, 0, 1, 9, 2];
        let packs = packs(counts.into_iter(), 4);
        let sizes: Vec<usize> = packs.iter().map(|pack| pack.iter().map(|piece| piece.range.len()).sum()).collect();
        assert_eq!(sizes, [4, 4, 4, 3]);
        let mut found = vec![Vec::new(); counts.len()];
        for pack in &packs {
            let mut at = 0;
            for piece in pack {
                assert_eq!(piece.at, at);
                at += piece.range.len();
                found[piece.parameter].extend(piece.range.clone());
            }
        }
        for (found, count) in found.iter().zip(counts) {
            assert_eq!(*found, (0..count).collect::<Vec<_>>());
        }
        assert_eq!((size(counts.into_iter()), size([0].into_iter()), size([MOST, 1].into_iter())), (15, 1, MOST));
    }
}
