//! What is made of the measured values. Pure.

/// Resamplings behind a confidence interval.
const RESAMPLES: usize = 4000;
/// Rounds without the agent that lie further apart than this share make a comparison worthless.
pub(super) const NOISY: f64 = 0.15;

/// The smallest value; infinite where there is none.
pub(super) fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The largest value; negative infinity where there is none.
pub(super) fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// The value that `share` of the values do not exceed (nearest rank).
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (1..=sorted.len()).find(|rank| *rank as f64 >= share * sorted.len() as f64);
    rank.and_then(|rank| sorted.get(rank - 1)).copied().unwrap_or(f64::NAN)
}

/// The median; the mean of both middle ones where their number is even.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |from_end: usize| sorted.len().checked_sub(from_end).and_then(|at| sorted.get(at));
    match (middle(sorted.len() / 2 + 1), middle(sorted.len().div_ceil(2))) {
        (Some(upper), Some(lower)) => f64::midpoint(*lower, *upper),
        _ => f64::NAN,
    }
}

/// How far the values lie apart, as a share of the least.
pub(super) fn spread(values: &[f64]) -> f64 {
    (most(values) - least(values)) / least(values)
}

/// Differences of the rounds: `on[n] - off[n]`.
pub(super) fn differences(off: &[f64], on: &[f64]) -> Vec<f64> {
    off.iter().zip(on).map(|(off, on)| on - off).collect()
}

/// The 95 % confidence interval of the median of `values`, by the percentile bootstrap.
pub(super) fn interval(values: &[f64]) -> (f64, f64) {
    let mut random = SplitMix(0x7469_7073_7461_6666);
    let mut medians: Vec<f64> = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let sample: Vec<f64> = values.iter().filter_map(|_| values.get(random.below(values.len()))).copied().collect();
        medians.push(median(&sample));
    }
    (quantile(&medians, 0.025), quantile(&medians, 0.975))
}

/// SplitMix64: small, and good enough to draw samples. Seeded with a constant, so that the same values give the same
/// interval.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (bound.max(1) as u64)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&values, 0.5).to_bits(), 3.0_f64.to_bits());
        assert_eq!(quantile(&values, 0.99).to_bits(), 5.0_f64.to_bits());
        assert_eq!(quantile(&values, 0.0).to_bits(), 1.0_f64.to_bits());
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(&[7.0]).to_bits(), 7.0_f64.to_bits());
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_interval_holds_the_median_and_widens_with_the_noise() {
        let quiet: Vec<f64> = (0..9).map(|n| 100.0 + f64::from(n) * 0.1).collect();
        let loud: Vec<f64> = (0..9).map(|n| 100.0 + f64::from(n) * 10.0).collect();
        for values in [&quiet, &loud] {
            let (low, high) = interval(values);
            assert!(low <= median(values) && median(values) <= high, "{low} {high}");
            assert!(least(values) <= low && high <= most(values));
        }
        let width = |values: &[f64]| interval(values).1 - interval(values).0;
        assert!(width(&loud) > 50.0 * width(&quiet));
        assert_eq!(interval(&[3.0, 3.0, 3.0]), (3.0, 3.0));
    }

    #[test]
    fn differences_are_taken_round_by_round() {
        let drifting = [100.0, 200.0, 300.0];
        let on = [110.0, 210.0, 310.0];
        assert_eq!(differences(&drifting, &on), [10.0, 10.0, 10.0]);
        assert!(spread(&drifting) > NOISY);
    }

    #[test]
    fn samples_stay_in_bounds_and_repeat() {
        let draw = || {
            let mut random = SplitMix(1);
            (0..1000).map(|_| random.below(7)).collect::<Vec<_>>()
        };
        assert!(draw().iter().all(|n| *n < 7));
        assert!((0..7).all(|n| draw().contains(&n)));
        assert_eq!(draw(), draw());
    }
}
