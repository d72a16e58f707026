//! Figures of time: systems take turns in rounds, and what is compared belongs to one round, since the host's own speed
//! changes while the systems run one after another.

use std::cmp::Ordering;

/// The median; of two middle figures the lower.
pub(super) fn median<T: PartialOrd + Copy>(mut figures: Vec<T>) -> Option<T> {
    figures.sort_by(|one, other| one.partial_cmp(other).unwrap_or(Ordering::Equal));
    figures.get(figures.len().saturating_sub(1) / 2).copied()
}

/// A table's cell of ratios, one of each round: the median, the least and the most; and how many ratios are numbers.
pub(super) fn ratios(ratios: impl Iterator<Item = f64>) -> (String, usize) {
    let ratios: Vec<f64> = ratios.filter(|ratio| ratio.is_finite()).collect();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    let count = ratios.len();
    (median(ratios).map_or("-".into(), |ratio| format!("{ratio:.2} ({least:.2} to {most:.2})")), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_figure() {
        assert_eq!(median::<u64>(vec![]), None);
        assert_eq!(median(vec![9, 1, 5]), Some(5));
        assert_eq!(median(vec![9, 1, 7, 3]), Some(3), "the lower of two");
    }

    #[test]
    fn a_division_by_nothing_is_no_ratio() {
        assert_eq!(ratios([7.0 / 0.0, 2.0, 1.0, 4.0].into_iter()), ("2.00 (1.00 to 4.00)".into(), 3));
        assert_eq!(ratios([7.0 / 0.0].into_iter()), ("-".into(), 0));
    }
}
