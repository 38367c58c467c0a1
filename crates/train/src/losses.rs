//! The losses of a step, summed over its samples.

use crate::batch::Batch;
use crate::branch::BranchAnswer;
use crate::face::FaceAnswer;
use crate::run::Losses;

/// A mean that grows, of means over some samples each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    /// Of the samples' values.
    pub sum: f64,
    /// The samples.
    pub count: usize,
}

impl Mean {
    /// Adds the mean of `count` samples.
    pub fn add(&mut self, mean: f64, count: usize) {
        if count > 0 {
            self.sum += mean * count as f64;
            self.count += count;
        }
    }

    fn merge(&mut self, other: Mean) {
        self.sum += other.sum;
        self.count += other.count;
    }

    /// The mean over all samples, if there are any.
    pub fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// The losses of some of a step's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// L_diff, of every sample.
    pub diff: Mean,
    /// L_id, of pictures with a face.
    pub id: Mean,
    /// L_align's semantic part and its part of the layout, of samples with an identity.
    pub align: [Mean; 2],
    /// Pictures that were looked at for a face, and those that show one.
    pub faces: [usize; 2],
}

impl LossSums {
    /// Adds what the branch answered for a batch.
    pub(crate) fn add_branch(&mut self, answer: &BranchAnswer, batch: &Batch) {
        let identified = batch.identified.iter().filter(|whose| **whose).count();
        answer.id.into_iter().for_each(|loss| self.id.add(loss, answer.faces[1]));
        let parts = answer.align.into_iter().flatten().zip(&mut self.align);
        parts.for_each(|(loss, mean)| mean.add(loss, identified));
        self.faces = [0, 1].map(|i| self.faces[i] + answer.faces[i]);
    }

    /// Adds L_id of one-step estimates.
    pub(crate) fn add_face(&mut self, answer: &FaceAnswer) {
        answer.loss.iter().for_each(|(loss, _)| self.id.add(*loss, answer.faces[1]));
        self.faces = [0, 1].map(|i| self.faces[i] + answer.faces[i]);
    }

    /// Adds those of other samples.
    pub fn merge(&mut self, other: &LossSums) {
        self.diff.merge(other.diff);
        self.id.merge(other.id);
        self.align.iter_mut().zip(other.align).for_each(|(mean, other)| mean.merge(other));
        self.faces = [0, 1].map(|i| self.faces[i] + other.faces[i]);
    }

    /// Means over the samples.
    pub fn means(&self) -> Losses {
        let [looked, found] = self.faces;
        Losses {
            diff: self.diff.value(),
            id: self.id.value(),
            align_sem: self.align[0].value(),
            align_layout: self.align[1].value(),
            faces: (looked > 0).then(|| found as f64 / looked as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_means_over_the_samples_that_have_them() {
        let mut sums = LossSums::default();
        for (diff, id, faces) in [(1.0, 0.2, [2, 2]), (2.0, 0.8, [2, 1]), (3.0, f64::NAN, [1, 0])] {
            let mut part = LossSums { faces, ..LossSums::default() };
            part.diff.add(diff, 2);
            part.id.add(id, faces[1]);
            sums.merge(&part);
        }
        let means = sums.means();
        assert_eq!((means.diff, means.faces), (Some(2.0), Some(0.6)));
        assert!((means.id.unwrap() - 0.4).abs() < 1e-12, "{means:?}");
        assert_eq!((means.align_sem, means.align_layout), (None, None));
    }
}
