//! Which losses a run minimises, and the branch of few steps that two of them look at.

use pulid::pipeline::SdxlModel;
use pulid_models::training::AlignmentNorm;
use pulid_tensor::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The most steps that a branch takes: few are what makes it affordable.
const MOST_STEPS: usize = 50;

/// The largest picture of a branch: faces are looked for at this size.
const MOST_PIXELS: usize = pulid::identity::LONG_SIDE as usize;

/// Factors of the losses (arXiv 2404.16022, section 3); one of 0 is left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// L_diff.
    pub diff: f64,
    /// L_id.
    pub id: f64,
    /// L_align, its semantic part.
    pub align_sem: f64,
    /// L_align, its part of the layout.
    pub align_layout: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { diff: 1.0, id: 0.0, align_sem: 0.0, align_layout: 0.0 }
    }
}

impl Weights {
    /// Those of the paper's stages 1, 2 and 3.
    pub fn of_stage(stage: u32) -> Option<Weights> {
        let first = Weights::default();
        let second = Weights { id: 1.0, ..first };
        match stage {
            1 => Some(first),
            2 => Some(second),
            3 => Some(Weights { align_sem: 0.6, align_layout: 0.1, ..second }),
            _ => None,
        }
    }

    /// Whether L_align is part of it.
    pub fn aligns(&self) -> bool {
        self.align_sem > 0.0 || self.align_layout > 0.0
    }

    /// Those of the losses that look at the branch of few steps, where `one_step` says whether L_id does not.
    pub fn of_branch(&self, one_step: bool) -> Weights {
        Weights { id: if one_step { 0.0 } else { self.id }, ..*self }
    }

    /// Whether any but L_diff is there.
    pub fn branches(&self) -> bool {
        self.id > 0.0 || self.aligns()
    }

    fn check(&self) -> Result<()> {
        let all =
            [("diff", self.diff), ("id", self.id), ("align_sem", self.align_sem), ("align_layout", self.align_layout)];
        if let Some((name, weight)) = all.iter().find(|(_, weight)| !(weight.is_finite() && *weight >= 0.0)) {
            return Err(Error::invalid(*name, format!("{weight} is no weight of a loss, a finite number from 0")));
        }
        if all.iter().all(|(_, weight)| *weight == 0.0) {
            return Err(Error::invalid("weights", "are all 0: there is no loss to be minimised"));
        }
        Ok(())
    }
}

/// The branch of few steps without guidance, from pure noise to a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BranchOptions {
    /// Its base model, one that needs few steps.
    pub model: PathBuf,
    /// Another UNet over it.
    pub unet: Option<PathBuf>,
    /// Pixels of a side of its pictures.
    pub resolution: usize,
    /// Its steps.
    pub steps: usize,
    /// Through how many of them, the last ones, L_id's gradient goes.
    pub backprop_steps: usize,
    /// On how many of them L_align looks: drawn anew for each batch where these are not all.
    pub align_steps: usize,
    /// How L_align measures distances: relative or rms.
    pub align_norm: String,
    /// The recogniser of L_id, an ONNX file.
    pub recogniser: PathBuf,
    /// L_id's prompt.
    pub id_prompt: String,
    /// L_align's prompts, of which each sample draws one.
    pub align_prompts: Vec<String>,
}

impl BranchOptions {
    /// PuLID's prompt for L_id (arXiv 2404.16022, section 4.1).
    pub const ID_PROMPT: &'static str = "portrait, color, cinematic";

    /// Prompts for L_align: as the paper's fifteen, portraits in styles that differ.
    pub const ALIGN_PROMPTS: [&'static str; 15] = [
        "portrait, color, cinematic",
        "portrait, oil painting style",
        "portrait, watercolor style",
        "portrait, pencil sketch style",
        "portrait, black and white film style",
        "portrait, anime style",
        "portrait, comic book style",
        "portrait, pop art style",
        "portrait, impressionist style",
        "portrait, cyberpunk style",
        "portrait, 3d render style",
        "portrait, pixel art style",
        "portrait, paper cut style",
        "portrait, ukiyo-e style",
        "portrait, marble sculpture style",
    ];

    /// Its base model.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open_model(&self) -> Result<SdxlModel> {
        let model = SdxlModel::open(&self.model)?;
        Ok(match &self.unet {
            Some(unet) => model.with_unet(unet),
            None => model,
        })
    }

    /// How L_align measures distances.
    ///
    /// # Errors
    /// For another word than relative and rms.
    pub fn norm(&self) -> Result<AlignmentNorm> {
        self.align_norm.parse()
    }

    fn check(&self) -> Result<()> {
        let wrong = |name: &str, detail: String| Err(Error::invalid(name, detail));
        if !(1..=MOST_STEPS).contains(&self.steps) {
            return wrong("branch_steps", format!("{} is not 1 to {MOST_STEPS}", self.steps));
        }
        for (name, value) in [("backprop_steps", self.backprop_steps), ("align_steps", self.align_steps)] {
            if !(1..=self.steps).contains(&value) {
                return wrong(name, format!("{value} is not 1 to the branch's {} steps", self.steps));
            }
        }
        if !(1..=MOST_PIXELS).contains(&self.resolution) {
            return wrong("branch_resolution", format!("{} is not 1 to {MOST_PIXELS}", self.resolution));
        }
        if self.align_prompts.is_empty() {
            return wrong("align_prompts", "are none; L_align needs at least one prompt".into());
        }
        self.norm().map(drop)
    }
}

/// L_id on one-step estimates: on the clean latents that L_diff's own prediction stands for, in place of the branch's pictures (the
/// baseline of table 2 of arXiv 2404.16022).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OneStepOptions {
    /// The recogniser, an ONNX file.
    pub recogniser: PathBuf,
}

/// Refuses weights that cannot be, and a branch that is missing or cannot be.
///
/// # Errors
/// [`Error::Invalid`] naming the setting and what is accepted.
pub(crate) fn check(
    weights: &Weights,
    branch: Option<&BranchOptions>,
    one_step: Option<&OneStepOptions>,
) -> Result<()> {
    weights.check()?;
    let weights = weights.of_branch(one_step.is_some());
    match branch {
        // One that no loss looks at may say what it likes.
        Some(branch) if weights.branches() => branch.check(),
        None if weights.branches() => {
            Err(Error::invalid("branch", "is missing: L_id and L_align look at its pictures"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) fn example() -> BranchOptions {
    BranchOptions {
        model: "model".into(),
        unet: None,
        resolution: 64,
        steps: 4,
        backprop_steps: 4,
        align_steps: 2,
        align_norm: "relative".into(),
        recogniser: "recogniser.onnx".into(),
        id_prompt: "a".into(),
        align_prompts: vec!["b".into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_the_paper_s_and_what_cannot_be_is_named() {
        let [first, second, third] = [1, 2, 3].map(|stage| Weights::of_stage(stage).unwrap());
        assert!(!first.branches() && second.branches() && !second.aligns() && third.aligns());
        assert_eq!([third.diff, third.id, third.align_sem, third.align_layout], [1.0, 1.0, 0.6, 0.1]);
        assert!(Weights::of_stage(4).is_none());
        check(&first, None, None).unwrap();
        check(&third, Some(&example()), None).unwrap();
        check(&first, Some(&BranchOptions { steps: 0, ..example() }), None).unwrap();
        let one_step = OneStepOptions { recogniser: "recogniser.onnx".into() };
        check(&second, None, Some(&one_step)).unwrap();
        assert!(check(&third, None, Some(&one_step)).unwrap_err().to_string().contains("missing"));
        let fails = |weights: Weights, branch: Option<BranchOptions>| {
            check(&weights, branch.as_ref(), None).unwrap_err().to_string()
        };
        assert!(fails(Weights { diff: 0.0, ..first }, None).contains("all 0"));
        assert!(fails(Weights { id: f64::NAN, ..first }, None).starts_with("id"));
        assert!(fails(second, None).contains("missing"));
        for (branch, name) in [
            (BranchOptions { steps: 0, ..example() }, "branch_steps"),
            (BranchOptions { backprop_steps: 5, ..example() }, "backprop_steps"),
            (BranchOptions { align_steps: 0, ..example() }, "align_steps"),
            (BranchOptions { resolution: 2048, ..example() }, "branch_resolution"),
            (BranchOptions { align_norm: "l1".into(), ..example() }, "norm"),
            (BranchOptions { align_prompts: Vec::new(), ..example() }, "align_prompts"),
        ] {
            let message = fails(third, Some(branch));
            assert!(message.starts_with(name), "{message}");
        }
    }
}
