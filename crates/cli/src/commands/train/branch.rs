//! Which losses are minimised, and the branch that some of them look at.

use super::{read_prompts, whole};
use crate::commands::models::ModelsArgs;
use clap::ValueEnum;
use pulid::identity::open_recogniser;
use pulid_tensor::{Error, Result};
use pulid_train::{BranchOptions, OneStepOptions, Weights};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IdFrom {
    /// The branch's pictures, as the paper has it
    Branch,
    /// What L_diff's own prediction stands for at its timestep: no branch is needed, but at high noise it is a blur
    OneStep,
}

/// Flags of the losses and of the branch.
#[derive(clap::Args)]
pub(super) struct LossArgs {
    /// The losses of the paper's stages: 1 is L_diff, 2 adds L_id, 3 adds L_align; the weights below change them
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3), default_value = "1")]
    stage: u32,
    /// Weight of the diffusion loss L_diff; 0 leaves it out [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    diff: Option<f64>,
    /// Weight of the identity loss L_id [default: 1 from stage 2 on]
    #[arg(long, value_name = "WEIGHT")]
    id: Option<f64>,
    /// Weight of L_align's semantic part [default: 0.6 in stage 3]
    #[arg(long, value_name = "WEIGHT")]
    align_sem: Option<f64>,
    /// Weight of L_align's part of the layout [default: 0.1 in stage 3]
    #[arg(long, value_name = "WEIGHT")]
    align_layout: Option<f64>,
    /// Which pictures L_id looks at [default: branch]
    #[arg(long, value_enum)]
    id_from: Option<IdFrom>,
    /// The base model of the branch of few steps [default: --model]
    #[arg(long, value_name = "PATH")]
    branch_model: Option<PathBuf>,
    /// Another UNet for the branch, such as SDXL-Lightning's [default: --unet, where --branch-model is not given]
    #[arg(long, value_name = "PATH")]
    branch_unet: Option<PathBuf>,
    /// Pixels of a side of the branch's pictures [default: --resolution]
    #[arg(long, value_name = "PIXELS")]
    branch_resolution: Option<usize>,
    /// Steps of the branch [default: 4]
    #[arg(long, value_name = "N")]
    branch_steps: Option<usize>,
    /// Through how many of them, the last ones, L_id's gradient goes [default: all]
    #[arg(long, value_name = "K")]
    backprop_steps: Option<usize>,
    /// On how many of them L_align looks, drawn anew for each batch [default: all]
    #[arg(long, value_name = "K")]
    align_steps: Option<usize>,
    /// How L_align measures distances: relative to a layer's values, or their root mean square [default: relative]
    #[arg(long, value_parser = ["relative", "rms"])]
    align_norm: Option<String>,
    /// Prompts of L_align: a text file, one a line [default: fifteen portraits in different styles]
    #[arg(long, value_name = "FILE")]
    align_prompts: Option<PathBuf>,
    /// The face recogniser of L_id, an ONNX file [default: the models folder's own]
    #[arg(long, value_name = "FILE")]
    recogniser: Option<PathBuf>,
}

impl LossArgs {
    pub fn weights(&self) -> Weights {
        let of_stage = Weights::of_stage(self.stage).unwrap_or_default();
        Weights {
            diff: self.diff.unwrap_or(of_stage.diff),
            id: self.id.unwrap_or(of_stage.id),
            align_sem: self.align_sem.unwrap_or(of_stage.align_sem),
            align_layout: self.align_layout.unwrap_or(of_stage.align_layout),
        }
    }

    fn is_one_step(&self) -> bool {
        self.id_from == Some(IdFrom::OneStep)
    }

    fn recogniser(&self, models: &ModelsArgs, model: Option<&Path>) -> Result<PathBuf> {
        let recogniser = match &self.recogniser {
            Some(path) => path.clone(),
            None => models.open(model, None)?.face_models()?.recogniser()?,
        };
        open_recogniser(&recogniser)?;
        whole(&recogniser)
    }

    /// L_id on one-step estimates, where it is asked for.
    ///
    /// # Errors
    /// A recogniser that is missing or of another kind; where there is no L_id.
    pub fn one_step(&self, models: &ModelsArgs, model: Option<&Path>) -> Result<Option<OneStepOptions>> {
        if self.id_from.is_some() && self.weights().id <= 0.0 {
            return Err(Error::invalid("--id-from", "is given, but there is no L_id; --stage 2 or --id asks for it"));
        }
        if !self.is_one_step() {
            return Ok(None);
        }
        Ok(Some(OneStepOptions { recogniser: self.recogniser(models, model)? }))
    }

    /// The branch, where the weights need one.
    ///
    /// # Errors
    /// Files that are missing or of another kind; flags of a branch that no loss looks at.
    pub fn branch(
        &self,
        models: &ModelsArgs,
        model: Option<&Path>,
        unet: Option<&Path>,
        resolution: usize,
    ) -> Result<Option<BranchOptions>> {
        let weights = self.weights().of_branch(self.is_one_step());
        let given = [
            ("--branch-model", self.branch_model.is_some()),
            ("--branch-unet", self.branch_unet.is_some()),
            ("--branch-resolution", self.branch_resolution.is_some()),
            ("--branch-steps", self.branch_steps.is_some()),
            ("--backprop-steps", self.backprop_steps.is_some() && weights.id <= 0.0),
            ("--recogniser", self.recogniser.is_some() && self.weights().id <= 0.0),
            ("--align-steps", self.align_steps.is_some() && !weights.aligns()),
            ("--align-norm", self.align_norm.is_some() && !weights.aligns()),
            ("--align-prompts", self.align_prompts.is_some() && !weights.aligns()),
        ];
        let of_losses = given.iter().skip(4).find(|(_, given)| *given);
        let unused = if weights.branches() { of_losses } else { given.iter().find(|(_, given)| *given) };
        if let Some((flag, _)) = unused {
            let detail =
                "is given, but no loss looks at it; --stage 2 or 3, or the losses' weights, ask for more of them";
            return Err(Error::invalid(*flag, detail));
        }
        if !weights.branches() {
            return Ok(None);
        }
        // A branch of its own model does not take the other one's UNet.
        let (model, other) = match &self.branch_model {
            Some(model) => (Some(model.as_path()), None),
            None => (model, unet),
        };
        let unet = self.branch_unet.as_deref().or(other);
        let recogniser = self.recogniser(models, model)?;
        let model = models.open(model, None)?.open_model(model, None, unet)?;
        let steps = self.branch_steps.unwrap_or(4);
        let prompts = self.align_prompts.as_deref().map(read_prompts).transpose()?;
        Ok(Some(BranchOptions {
            model: whole(model.path())?,
            unet: model.other_unet().map(whole).transpose()?,
            resolution: self.branch_resolution.unwrap_or(resolution),
            steps,
            backprop_steps: self.backprop_steps.unwrap_or(steps),
            align_steps: self.align_steps.unwrap_or(steps),
            align_norm: self.align_norm.clone().unwrap_or_else(|| "relative".into()),
            recogniser,
            id_prompt: BranchOptions::ID_PROMPT.into(),
            align_prompts: prompts.unwrap_or_else(|| BranchOptions::ALIGN_PROMPTS.map(String::from).to_vec()),
        }))
    }
}
