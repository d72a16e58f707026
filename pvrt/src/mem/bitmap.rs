//! Which pages of a numbered range are free. Each page has one bit, and searches go by words.

/// `WORDS * 64` pages; a set bit is a free page. Starts with none free.
pub(crate) struct Bitmap<const WORDS: usize> {
    words: [u64; WORDS],
    free: usize,
    /// No page below this word is free.
    hint: usize,
    /// No page from this word on was ever freed.
    end: usize,
}

impl<const WORDS: usize> Bitmap<WORDS> {
    pub(crate) const fn new() -> Self {
        Self { words: [0; WORDS], free: 0, hint: WORDS, end: 0 }
    }

    /// Pages free now.
    pub(crate) fn free_pages(&self) -> usize {
        self.free
    }

    /// Frees pages `start..end`. Pages beyond the bitmap are ignored.
    ///
    /// # Panics
    /// When a page is free already.
    pub(crate) fn release(&mut self, start: usize, end: usize) {
        let end = end.min(WORDS * 64);
        for (word, mask) in words_of(start, end) {
            assert!(self.words[word] & mask == 0, "page freed twice, word {word}");
            self.words[word] |= mask;
            self.free += mask.count_ones() as usize;
            self.hint = self.hint.min(word);
            self.end = self.end.max(word + 1);
        }
    }

    /// Takes pages `start..end` out, free or not.
    pub(crate) fn reserve(&mut self, start: usize, end: usize) {
        let end = end.min(WORDS * 64);
        for (word, mask) in words_of(start, end) {
            self.free -= (self.words[word] & mask).count_ones() as usize;
            self.words[word] &= !mask;
        }
    }

    /// Takes the lowest run of `count` free pages; returns its first page.
    pub(crate) fn take(&mut self, count: usize) -> Option<usize> {
        if count == 0 || count > self.free {
            return None;
        }
        let mut run = 0;
        let mut first_free = None;
        let mut word = self.hint;
        while word < self.end {
            let bits = self.words[word];
            if bits == 0 {
                run = 0;
                word += 1;
                continue;
            }
            first_free.get_or_insert(word);
            if bits == u64::MAX && run + 64 < count {
                run += 64;
                word += 1;
                continue;
            }
            let mut bit = 0;
            while bit < 64 {
                let rest = bits >> bit;
                if rest & 1 == 0 {
                    run = 0;
                    // Skip the taken pages at once.
                    bit += if rest == 0 { 64 } else { rest.trailing_zeros() as usize };
                    continue;
                }
                let ones = (!rest).trailing_zeros() as usize;
                let ones = ones.min(64 - bit).min(count - run);
                run += ones;
                bit += ones;
                if run == count {
                    let start = word * 64 + bit - count;
                    self.reserve(start, start + count);
                    self.hint = first_free.unwrap_or(self.hint);
                    return Some(start);
                }
            }
            word += 1;
        }
        None
    }
}

/// The words and masks that cover `start..end`.
fn words_of(start: usize, end: usize) -> impl Iterator<Item = (usize, u64)> {
    let mut at = start;
    core::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (word, bit) = (at / 64, at % 64);
        let count = (64 - bit).min(end - at);
        at += count;
        Some((word, (u64::MAX >> (64 - count)) << bit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_gives_nothing() {
        let mut map = Bitmap::<2>::new();
        assert_eq!(map.take(1), None);
        map.release(0, 128);
        assert_eq!(map.take(0), None);
        assert_eq!(map.take(129), None);
        assert_eq!(map.take(128), Some(0));
        assert_eq!(map.free_pages(), 0);
    }

    #[test]
    fn runs_cross_words() {
        let mut map = Bitmap::<4>::new();
        map.release(60, 70);
        map.release(72, 250);
        assert_eq!(map.take(11), Some(72));
        assert_eq!(map.take(10), Some(60));
        assert_eq!(map.take(160), Some(83));
        assert_eq!(map.take(8), None);
        assert_eq!(map.take(7), Some(243));
    }

    #[test]
    fn beyond_the_end_is_ignored() {
        let mut map = Bitmap::<1>::new();
        map.release(60, 100);
        assert_eq!(map.free_pages(), 4);
        map.reserve(62, 1000);
        assert_eq!(map.free_pages(), 2);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_double_free_is_noticed() {
        let mut map = Bitmap::<1>::new();
        map.release(1, 3);
        map.release(2, 4);
    }

    #[test]
    fn random_takes_never_overlap() {
        let mut map = Bitmap::<8>::new();
        map.release(3, 509);
        let mut owned = [false; 512];
        let mut held = alloc::vec::Vec::new();
        let mut seed = 12345u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let r = (seed >> 33) as usize;
            if r.is_multiple_of(2) {
                let count = 1 + r / 2 % 90;
                if let Some(start) = map.take(count) {
                    for page in &mut owned[start..start + count] {
                        assert!(!*page);
                        *page = true;
                    }
                    held.push((start, count));
                }
            } else if !held.is_empty() {
                let (start, count) = held.swap_remove(r / 2 % held.len());
                owned[start..start + count].fill(false);
                map.release(start, start + count);
            }
            assert_eq!(map.free_pages(), 506 - owned.iter().filter(|o| **o).count());
        }
    }
}
