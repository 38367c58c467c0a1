use pulid_tensor::{Error, Result};

/// The part of a run in which something, such as the identity, takes effect: the settings `id_start` and `id_end`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepWindow {
    start: f64,
    end: f64,
}

impl StepWindow {
    /// The whole run.
    pub const ALL: StepWindow = StepWindow { start: 0.0, end: 1.0 };

    /// From fraction `start` of the steps up to fraction `end`; 0 and 1 are the whole run.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless 0 <= start <= end <= 1.
    pub fn new(start: f64, end: f64) -> Result<Self> {
        if !(0.0 <= start && start <= end && end <= 1.0) {
            return Err(Error::invalid(
                "id_start",
                format!("{start} and `id_end` {end} are not 0 <= start <= end <= 1"),
            ));
        }
        Ok(StepWindow { start, end })
    }

    /// The fractions of the steps at which it begins and ends.
    pub fn ends(&self) -> (f64, f64) {
        (self.start, self.end)
    }

    /// Whether step `step` (from 0) of `steps` lies inside: start <= step / steps < end.
    pub fn contains(&self, step: usize, steps: usize) -> bool {
        // Multiplied out with a little slack, so that 0.3 of 10 steps begins with step 3 in spite of rounding.
        let (position, total) = (step as f64, steps as f64);
        let slack = 1e-9 * total;
        position >= self.start * total - slack && position < self.end * total - slack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_select_steps() {
        let chosen = |a, b, n| (0..n).filter(|&i| StepWindow::new(a, b).unwrap().contains(i, n)).collect::<Vec<_>>();
        assert_eq!(chosen(0.0, 1.0, 5), [0, 1, 2, 3, 4]);
        assert_eq!(chosen(0.3, 0.7, 10), [3, 4, 5, 6]);
        assert_eq!(chosen(0.25, 1.0, 4), [1, 2, 3]);
        assert_eq!(chosen(0.5, 0.5, 4), [0usize; 0]);
        assert_eq!(chosen(0.0, 0.1, 4), [0]);
    }

    #[test]
    fn adjoining_windows_share_no_step() {
        for n in 1..40 {
            for k in 0..=20 {
                let cut = f64::from(k) / 20.0;
                let (a, b) = (StepWindow::new(0.0, cut).unwrap(), StepWindow::new(cut, 1.0).unwrap());
                assert!((0..n).all(|i| a.contains(i, n) != b.contains(i, n)), "{n} steps cut at {cut}");
            }
        }
    }

    #[test]
    fn reversed_and_outside_windows_are_refused() {
        for (a, b) in [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (f64::NAN, 1.0)] {
            assert!(StepWindow::new(a, b).is_err(), "{a} {b}");
        }
    }
}
