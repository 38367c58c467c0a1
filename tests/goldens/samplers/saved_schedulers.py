"""Files of schedulers as diffusers saves them: SDXL's own configuration under every scheduler class that its pipelines take, and of each
what the class makes of it. The files are kept as text, since Python writes numbers that JSON does not have."""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import diffusers
from common import versions, write_json

HERE = pathlib.Path(__file__).resolve().parent
# stabilityai/stable-diffusion-xl-base-1.0's scheduler/scheduler_config.json.
SDXL = dict(
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    clip_sample=False,
    interpolation_type="linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    sample_max_value=1.0,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    timestep_spacing="leading",
    trained_betas=None,
    use_karras_sigmas=False,
)
CLASSES = """DDIM DDPM DEISMultistep DPMSolverMultistep DPMSolverSDE DPMSolverSinglestep EulerAncestralDiscrete EulerDiscrete
HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete LCM LMSDiscrete PNDM SASolver TCD UniPCMultistep EDMEuler EDMDPMSolverMultistep
FlowMatchEulerDiscrete""".split()
# Classes that are also saved with other options.
VARIED = ("DDIM", "DPMSolverMultistep", "EulerDiscrete")
VARIANTS = {
    "": {},
    "karras": dict(use_karras_sigmas=True),
    "trailing": dict(timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True),
}


def main() -> None:
    cases = []
    for name in CLASSES:
        for variant, changes in VARIANTS.items():
            if variant and name not in VARIED:
                continue
            try:
                scheduler = getattr(diffusers, f"{name}Scheduler").from_config({**SDXL, **changes})
            except (ImportError, ValueError) as error:
                print("left out", name, variant, str(error).splitlines()[0])
                continue
            with tempfile.TemporaryDirectory() as folder:
                scheduler.save_pretrained(folder)
                text = (pathlib.Path(folder) / "scheduler_config.json").read_text()
            cases.append({"class": f"{name}Scheduler", "variant": variant, "text": text})
    write_json(HERE / "saved_schedulers.json", {"cases": cases, "versions": versions(), "note": __doc__})
    print(len(cases), "files,", sum("Infinity" in case["text"] for case in cases), "with Infinity")


if __name__ == "__main__":
    main()
