//! Arithmetic of clocks: rates, scales, and the real-time clock's fields.
#![forbid(unsafe_code)]

/// How ticks become ns: ((ticks << `shift`) * `mul`) >> 32, a right shift when negative.
///
/// ABI: `tsc_to_system_mul` and `tsc_shift` of `struct vcpu_time_info`, `xen/include/public/xen.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// ns for a shifted tick, 0.32 fixed point.
    pub mul: u32,
    /// Left shift.
    pub shift: i8,
}

impl Scale {
    /// The scale of a counter of `hz`, which is taken for at least 1.
    pub fn of_hz(hz: u64) -> Self {
        // ns for a tick, 32.96 fixed point: the highest 32 bits that are not zero are `mul`.
        let ns = (1_000_000_000u128 << 96) / u128::from(hz.max(1));
        let bits = u128::BITS - ns.leading_zeros();
        Self { mul: (ns >> (bits - u32::BITS)) as u32, shift: (bits as i32 - 96) as i8 }
    }

    /// ns for `ticks`.
    #[inline]
    pub fn ns(self, ticks: u64) -> u64 {
        let shifted = if self.shift >= 0 { ticks << self.shift } else { ticks >> -self.shift };
        (u128::from(shifted) * u128::from(self.mul) >> 32) as u64
    }
}

/// The rate of a counter that went `ticks` while a reference of `reference_hz` went `counted`.
pub fn hz(ticks: u64, counted: u64, reference_hz: u64) -> u64 {
    let hz = u128::from(ticks) * u128::from(reference_hz) / u128::from(counted.max(1));
    u64::try_from(hz).unwrap_or(u64::MAX).max(1)
}

/// What a reference really counted, of which only the bits of `mask` are known: the whole wraps come from the TSC's
/// ticks at about `tsc_hz`.
pub fn unwrap_count(count: u64, mask: u64, ticks: u64, tsc_hz: u64, reference_hz: u64) -> u64 {
    let expected = (u128::from(ticks) * u128::from(reference_hz) / u128::from(tsc_hz.max(1))) as u64;
    let period = mask + 1;
    let low = count & mask;
    let wraps = expected.saturating_sub(low).saturating_add(period / 2) / period;
    low + wraps * period
}

/// The rate to go on with after one of `old` was measured as `new`: a jump of more than 1/256 is not believed.
pub fn refitted(old: u64, new: u64) -> u64 {
    if old.abs_diff(new) > old / 256 { old } else { new }
}

/// What two CPUs saw of each other's TSC in many meetings: one CPU reads its TSC and tells the other, which reads its own then.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// How much later a CPU's TSC was at least than what the boot CPU had told.
    there: i64,
    /// The same the other way.
    back: i64,
}

impl Default for Comparison {
    /// The two CPUs have not met yet.
    fn default() -> Self {
        Self { there: i64::MAX, back: i64::MAX }
    }
}

impl Comparison {
    /// The boot CPU told a value, and the other CPU read its own then.
    pub fn went(&mut self, told: u64, read: u64) {
        self.there = self.there.min(read.wrapping_sub(told) as i64);
    }

    /// The other CPU told a value, and the boot CPU read its own then.
    pub fn came(&mut self, told: u64, read: u64) {
        self.back = self.back.min(read.wrapping_sub(told) as i64);
    }

    /// What makes the other CPU's TSC the boot CPU's when it is added, modulo 2^64, if the TSCs are not one clock: if one CPU saw
    /// its own behind what the other had told. The way takes as long there as back, as far as anybody knows: the offset is wrong by
    /// half of what both took at most.
    pub fn offset(&self) -> Option<u64> {
        let is_one_clock = self.there >= 0 && self.back >= 0;
        (!is_one_clock).then(|| ((i128::from(self.back) - i128::from(self.there)) / 2) as u64)
    }
}

/// Seconds since 1970 from the fields of the real-time clock, the MC146818, as read: `status_b` says in what form they
/// are, binary or BCD.
pub fn unix_seconds([second, minute, hour, day, month, year, century]: [u8; 7], status_b: u8) -> u64 {
    let binary = status_b & 4 != 0;
    let number = |value: u8| u64::from(if binary { value } else { (value >> 4) * 10 + (value & 0xf) });
    let mut hours = number(hour & 0x7f);
    if status_b & 2 == 0 {
        hours = hours % 12 + if hour & 0x80 != 0 { 12 } else { 0 };
    }
    let century = match number(century) {
        century @ 19..=21 => century,
        _ => 20,
    };
    let year = century * 100 + number(year);
    let (month, day) = (number(month).clamp(1, 12), number(day).max(1));
    // A year that begins in March has its leap day last, and its months begin every 153 / 5 days.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    (((days - DAYS_TO_1970) * 24 + hours) * 60 + number(minute)) * 60 + number(second)
}

/// Days from March 1 of the year 0 to 1970.
const DAYS_TO_1970: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_give_a_second_for_a_second() {
        for hz in [
            1_000_000,
            999_999_999,
            1_000_000_000,
            1_000_000_001,
            2_000_000_000,
            2_394_230_000,
            5_100_000_000,
        ] {
            let scale = Scale::of_hz(hz);
            let ns = scale.ns(hz);
            assert!(ns.abs_diff(1_000_000_000) <= 4, "{hz}: {ns}");
            assert!(scale.ns(0) == 0);
        }
        Scale::of_hz(0);
        Scale::of_hz(u64::MAX);
    }

    #[test]
    fn rates() {
        assert_eq!(hz(20_000_000, 35_795, 3_579_545), 2_000_025_143);
        assert_eq!(hz(0, 0, 0), 1);
        assert_eq!(hz(u64::MAX, 1, u64::MAX), u64::MAX);
        assert_eq!(refitted(1_000_000, 1_003_000), 1_003_000);
        assert_eq!(refitted(1_000_000, 2_000_000), 1_000_000);
    }

    #[test]
    fn a_wrapped_count_is_unwrapped() {
        let mask = 0xff_ffff;
        for seconds in [1u64, 4, 5, 60] {
            let real = seconds * 3_579_545;
            assert_eq!(unwrap_count(real & mask, mask, seconds * 1_000_000, 1_000_000, 3_579_545), real);
        }
        assert_eq!(unwrap_count(5, mask, 0, 1_000_000, 3_579_545), 5);
    }

    /// What a comparison finds of a CPU whose TSC is ahead by `ahead`, when each way takes between `least` and ten times as long.
    fn compared(ahead: i64, least: u64) -> Option<u64> {
        let mut comparison = Comparison::default();
        let (mut now, mut random) = (u64::MAX - 5_000_000, 1u64);
        let mut way = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            least + (random >> 33) % (9 * least)
        };
        for _ in 0..1_000 {
            let (went, stayed, came) = (way(), way(), way());
            let theirs = |at: u64| at.wrapping_add_signed(ahead);
            let arrived = now.wrapping_add(went);
            comparison.went(now, theirs(arrived));
            let left = arrived.wrapping_add(stayed);
            now = left.wrapping_add(came);
            comparison.came(theirs(left), now);
        }
        comparison.offset()
    }

    #[test]
    fn tscs_that_nobody_sees_go_back_are_one_clock() {
        for ahead in [0, 1, -1, 90, -90] {
            assert_eq!(compared(ahead, 100), None, "{ahead}: less than a way takes");
        }
    }

    #[test]
    fn tscs_that_differ_get_an_offset() {
        for ahead in [300, -300, 1_000_000, -1_000_000, i64::MAX / 2, i64::MIN / 2] {
            let offset = compared(ahead, 100).expect("somebody saw a TSC go back");
            let error = offset.wrapping_add_signed(ahead) as i64;
            assert!(error.abs() <= 100, "{ahead}: wrong by {error}");
        }
    }

    #[test]
    fn dates() {
        let fields = [0x59, 0x30, 0x23, 0x29, 2, 0x24, 0x20];
        assert_eq!(unix_seconds(fields, 2), 1_709_249_459);
        assert_eq!(unix_seconds([0, 0, 0, 1, 1, 70, 19], 6), 0);
        let noon = [0, 0, 0x92, 1, 1, 0x70, 0x19];
        assert_eq!(unix_seconds(noon, 0), 12 * 3600);
        unix_seconds([0x59, 0x30, 0x23, 0, 0xff, 0x24, 0], 2);
    }
}
