// Generated from crates/pulid/src/settings/list.rs by `cargo xtask bless`: every setting, for pages that make fields of them.

export const SETTINGS = [
  {"default":1024,"help":"Width in pixels, a multiple of 8 for SDXL.","max":4096,"min":1,"name":"width","ofModel":true,"option":"width","page":true,"type":"whole"},
  {"default":1024,"help":"Height in pixels, a multiple of 8 for SDXL.","max":4096,"min":1,"name":"height","ofModel":true,"option":"height","page":true,"type":"whole"},
  {"default":25,"help":"Denoising steps; more take longer and change less and less.","min":1,"name":"steps","ofModel":true,"option":"steps","page":true,"type":"whole"},
  {"default":7.0,"help":"Classifier-free guidance, how strictly the prompt is followed; up to 1 is without, and twice as fast.","max":100.0,"min":0.0,"name":"guidance","ofModel":true,"option":"guidance","page":true,"type":"number"},
  {"choices":["dpmpp_2m","dpmpp_sde","euler","ddim"],"default":"dpmpp_2m","help":"Solver: dpmpp_2m, dpmpp_sde (two calls a step), euler or ddim; other programs' names of them are understood, as DPM++ 2M Karras.","name":"sampler","ofModel":true,"option":"sampler","page":true,"type":"choice"},
  {"choices":["karras","trailing","leading","linspace","karras_diffusers","exponential","beta","exponential_diffusers","beta_diffusers"],"default":null,"follows":"sampler","help":"Where the noise levels lie: karras, exponential and beta as k-diffusion and the web UI have them; trailing, leading, linspace and what ends in _diffusers as diffusers' schedulers have them.","name":"spacing","ofModel":true,"option":"spacing","page":true,"type":"choice"},
  {"choices":["zero","sigma_min"],"default":"zero","help":"Noise left by the last step: zero, or sigma_min as diffusers 0.25 ends dpmpp_2m with trailing levels.","name":"final_sigma","ofModel":false,"option":"finalSigma","page":true,"type":"choice"},
  {"default":0.8,"help":"Strength of the identity; 0 is without.","max":5.0,"min":-5.0,"name":"id_scale","ofModel":true,"option":"idScale","page":true,"type":"number"},
  {"default":20,"help":"Zero tokens that draw attention away from the identity: more follow the prompt more.","max":4096,"min":0,"name":"num_zero","ofModel":true,"option":"numZero","page":true,"type":"whole"},
  {"choices":["off","v1","v2"],"default":"v2","help":"Projection of the identity features, which keeps them from disturbing the rest of the image: off, v1 or v2.","name":"ortho","ofModel":true,"option":"ortho","page":true,"type":"choice"},
  {"default":0.0,"help":"Fraction of the steps at which the identity sets in.","max":1.0,"min":0.0,"name":"id_start","ofModel":false,"option":"idStart","page":true,"type":"number"},
  {"default":1.0,"help":"Fraction of the steps at which the identity ends.","max":1.0,"min":0.0,"name":"id_end","ofModel":false,"option":"idEnd","page":true,"type":"number"},
  {"default":null,"help":"What the image does not show; none is another thing than an empty one where the model's `force_zeros_for_empty_prompt` says so.","name":"negative_prompt","ofModel":true,"option":"negativePrompt","page":true,"type":"text"},
  {"choices":["chunks","cut"],"default":"chunks","help":"What becomes of a prompt of more than 75 tokens: chunks of 75, which the image follows together, or it is cut.","name":"long_prompt","ofModel":false,"option":"longPrompt","page":true,"type":"choice"},
  {"default":0,"help":"The same seed gives the same image, and the same noise as in PyTorch's CPU generator; -2^63 to 2^64-1, where -1 is 2^64-1.","max":9007199254740991,"min":-9007199254740991,"name":"seed","ofModel":false,"option":"seed","page":true,"type":"whole"},
  {"default":1,"help":"Images at once.","max":64,"min":1,"name":"batch","ofModel":false,"option":"batch","page":false,"type":"whole"},
  {"default":null,"help":"Makes the batch's image of this position alone, counted from 0, as the whole batch would; a batch of 1 is taken for one that ends with it.","max":63,"min":0,"name":"batch_index","ofModel":false,"option":"batchIndex","page":false,"type":"whole"},
  {"choices":["f32","f16"],"default":"f32","help":"Storage type: f16 halves the memory.","name":"dtype","ofModel":false,"option":"dtype","page":true,"type":"choice"},
  {"choices":["none","q8","q4"],"default":"none","help":"Quantise the weights while they load: none, q8 (8.5 bits a weight) or q4 (4.5, visibly another image).","name":"quantize","ofModel":false,"option":"quantize","page":true,"type":"choice"},
];
