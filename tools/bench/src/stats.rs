//! What a series of measurements comes down to.

use serde::Serialize;

/// Order statistics of one series, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Stats {
    /// How many measurements.
    pub(crate) runs: usize,
    /// The median.
    pub(crate) median_us: f64,
    /// The least.
    pub(crate) min_us: f64,
    /// The greatest.
    pub(crate) max_us: f64,
    /// Distance between the quartiles: half of all measurements lie within this width.
    pub(crate) spread_us: f64,
}

impl Stats {
    /// Summarises nanoseconds; `None` without any.
    pub(crate) fn of(samples: &[u64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let us = |ns: &u64| *ns as f64 / 1_000.0;
        // Nearest rank, except that the median of an even count is the mean of the middle two.
        let rank = |numerator: usize| sorted.get((sorted.len() - 1) * numerator / 4).map(us);
        let median = {
            let low = sorted.get((sorted.len().checked_sub(1)?) / 2).map(us)?;
            let high = sorted.get(sorted.len() / 2).map(us)?;
            (low + high) / 2.0
        };
        Some(Self {
            runs: sorted.len(),
            median_us: median,
            min_us: sorted.first().map(us)?,
            max_us: sorted.last().map(us)?,
            spread_us: rank(3)? - rank(1)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_outliers_do_not_move_the_median() {
        let stats = Stats::of(&[3_000, 1_000, 900_000, 2_000, 4_000]).unwrap();
        assert_eq!(
            stats,
            Stats {
                runs: 5,
                median_us: 3.0,
                min_us: 1.0,
                max_us: 900.0,
                spread_us: 2.0
            }
        );
    }

    #[test]
    fn small_series_are_defined() {
        assert_eq!(Stats::of(&[]), None);
        let one = Stats::of(&[7_000]).unwrap();
        assert_eq!((one.median_us, one.spread_us), (7.0, 0.0));
        assert_eq!(Stats::of(&[1_000, 2_000]).unwrap().median_us, 1.5);
    }
}
