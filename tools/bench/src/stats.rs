//! What a series of measurements comes down to.

use serde::Serialize;

/// Order statistics of one series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Stats {
    /// How many measurements.
    pub(crate) runs: usize,
    /// The median.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
    /// Distance between the quartiles: half of all measurements lie within this width.
    pub(crate) spread: f64,
}

impl Stats {
    /// Summarises nanoseconds as microseconds; `None` without any.
    pub(crate) fn of(samples: &[u64]) -> Option<Self> {
        let us: Vec<f64> = samples.iter().map(|ns| *ns as f64 / 1_000.0).collect();
        Self::of_values(&us)
    }

    /// Summarises values of any unit; `None` without any.
    pub(crate) fn of_values(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        // Nearest rank, except that the median of an even count is the mean of the middle two.
        let rank = |numerator: usize| {
            let index = (sorted.len() - 1) * numerator / 4;
            sorted.get(index).copied()
        };
        let median = {
            let low = sorted.get((sorted.len().checked_sub(1)?) / 2)?;
            let high = sorted.get(sorted.len() / 2)?;
            (low + high) / 2.0
        };
        Some(Self {
            runs: sorted.len(),
            median,
            min: *sorted.first()?,
            max: *sorted.last()?,
            spread: rank(3)? - rank(1)?,
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
                median: 3.0,
                min: 1.0,
                max: 900.0,
                spread: 2.0
            }
        );
    }

    #[test]
    fn small_series_are_defined() {
        assert_eq!(Stats::of(&[]), None);
        let one = Stats::of(&[7_000]).unwrap();
        assert_eq!((one.median, one.spread), (7.0, 0.0));
        assert_eq!(Stats::of(&[1_000, 2_000]).unwrap().median, 1.5);
    }
}
