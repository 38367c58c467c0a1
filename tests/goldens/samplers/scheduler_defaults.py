"""What diffusers' scheduler classes take where a file says nothing: the noise of each with betas, and the names of all others.

Each class is made without arguments; sigma at every 111th training timestep tells its betas.
"""

import importlib
import inspect
import pathlib
import pkgutil
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import diffusers.schedulers
from common import versions, write_json

# Needed for noise alone, of which there is none here.
sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))

HERE = pathlib.Path(__file__).resolve().parent


def classes() -> dict[str, type]:
    found = {}
    folder = diffusers.schedulers.__path__[0]
    for package, path in (("diffusers.schedulers", folder), ("diffusers.schedulers.deprecated", f"{folder}/deprecated")):
        for module in pkgutil.iter_modules([path]):
            # Flax' own need Flax; their names begin so.
            if module.ispkg or module.name.endswith("_flax"):
                continue
            module = importlib.import_module(f"{package}.{module.name}")
            for name, value in vars(module).items():
                if inspect.isclass(value) and name.endswith("Scheduler") and value.__module__ == module.__name__:
                    found[name] = value
    return dict(sorted(found.items()))


# They have betas, but not the noise that the betas alone say.
SHIFTED = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "ConsistencyDecoderScheduler")


def main() -> None:
    betas, others = [], []
    for name, kind in classes().items():
        scheduler = None
        try:
            scheduler = kind()
        except TypeError as error:
            print("needs arguments", name, error)
        if name in SHIFTED or getattr(scheduler, "alphas_cumprod", None) is None:
            others.append(name)
            continue
        products = scheduler.alphas_cumprod
        config = scheduler.config
        case = {"class": name, "sigmas": ((1 - products) / products).sqrt()[::111].tolist()}
        for key in ("timestep_spacing", "steps_offset"):
            if key in config:
                case[key] = config[key]
        betas.append(case)
    write_json(
        HERE / "scheduler_defaults.json", {"betas": betas, "others": others, "versions": versions(), "note": __doc__}
    )
    print(len(betas), "with betas,", len(others), "others", others)


if __name__ == "__main__":
    main()
