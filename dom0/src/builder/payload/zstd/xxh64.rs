//! The checksum of zstd frames: XXH64 with seed 0.

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;
const STRIPE: usize = 32;

/// A checksum under way.
pub(super) struct Xxh64 {
    lanes: [u64; 4],
    kept: [u8; STRIPE],
    total: u64,
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

impl Xxh64 {
    pub(super) fn new() -> Self {
        let lanes = [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)];
        Self { lanes, kept: [0; STRIPE], total: 0 }
    }

    fn stripe(&mut self, stripe: &[u8; STRIPE]) {
        for (lane, bytes) in self.lanes.iter_mut().zip(stripe.as_chunks().0) {
            *lane = round(*lane, u64::from_le_bytes(*bytes));
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let kept = self.total as usize % STRIPE;
        self.total = self.total.wrapping_add(bytes.len() as u64);
        let mut rest = bytes;
        if kept > 0 {
            let (now, later) = rest.split_at(rest.len().min(STRIPE - kept));
            self.kept[kept..kept + now.len()].copy_from_slice(now);
            rest = later;
            if kept + now.len() < STRIPE {
                return;
            }
            let stripe = self.kept;
            self.stripe(&stripe);
        }
        let (stripes, rest) = rest.as_chunks();
        stripes.iter().for_each(|stripe| self.stripe(stripe));
        self.kept[..rest.len()].copy_from_slice(rest);
    }

    pub(super) fn finish(&self) -> u64 {
        let mut hash = if self.total >= STRIPE as u64 {
            let [a, b, c, d] = self.lanes;
            let sum = a.rotate_left(1).wrapping_add(b.rotate_left(7));
            let sum = sum.wrapping_add(c.rotate_left(12)).wrapping_add(d.rotate_left(18));
            self.lanes
                .iter()
                .fold(sum, |hash, &lane| (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4))
        } else {
            P5
        };
        hash = hash.wrapping_add(self.total);
        let (words, rest) = self.kept[..self.total as usize % STRIPE].as_chunks::<8>();
        for bytes in words {
            hash = (hash ^ round(0, word(bytes))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for bytes in halves {
            hash = (hash ^ word(bytes).wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        }
        for &byte in rest {
            hash = (hash ^ u64::from(byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
        }
        hash = (hash ^ hash >> 33).wrapping_mul(P2);
        hash = (hash ^ hash >> 29).wrapping_mul(P3);
        hash ^ hash >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums_in_any_pieces() {
        // Checksums of the reference implementation.
        for (text, sum) in [
            ("", 0xef46_db37_51d8_e999u64),
            ("a", 0xd24e_c4f1_a98c_6e5b),
            ("abc", 0x44bc_2cf5_ad77_0999),
            ("Nobody inspects the spammish repetition", 0xfbce_a83c_8a37_8bf1),
        ] {
            for step in [1, 7, 64] {
                let mut hash = Xxh64::new();
                text.as_bytes().chunks(step).for_each(|piece| hash.update(piece));
                assert_eq!(hash.finish(), sum, "{text}");
            }
        }
    }
}
