//! The samples of a step, drawn by their keys.

use crate::buckets::Size;
use crate::cache::{Cache, HIDDEN_STATES, Sample, TextStates};
use crate::options::{Pair, TrainOptions};
use crate::random::Keyed;
use pulid::image::Normalization;
use pulid::pipeline::{SdxlModel, scheduler_config};
use pulid::sampler::{NoiseSchedule, PredictionType};
use pulid_models::Precision;
use pulid_tensor::{Error, HostTensor, Result, Shape};
use std::collections::{BTreeMap, HashMap};

/// What the losses are computed of in a micro-batch of B samples.
#[derive(Clone, Debug)]
pub struct Batch {
    /// [B, h, w, 4], channels last: scaled latents with noise.
    pub sample: HostTensor,
    /// [B].
    pub timestep: HostTensor,
    /// [B, 77, D].
    pub encoder_hidden_states: HostTensor,
    /// [B, P].
    pub text_embeds: HostTensor,
    /// [B, 6].
    pub time_ids: HostTensor,
    /// [B, h, w, 4], channels last: what the network is to predict.
    pub target: HostTensor,
    /// [B, 3, 112, 112]: the faces that give the identities, as a recogniser takes them, -1 to 1.
    pub faces: HostTensor,
    /// Whether a sample's identity is someone's, else the unconditional one.
    pub identified: Vec<bool>,
    /// For each sample the shares of clean latents and of noise in it, sqrt(a) and sqrt(1 - a) of its timestep.
    pub levels: Vec<[f64; 2]>,
    /// [B, 1, 1, 1]: each sample's factor in L_diff.
    pub weights: HostTensor,
}

/// What the identity encoder is given of the people of a micro-batch, zeros where the identity is left out.
#[derive(Clone, Debug)]
pub struct People {
    /// [B, C].
    pub id_cond: HostTensor,
    /// [B, tokens, W] each.
    pub hidden: Vec<HostTensor>,
}

impl Batch {
    /// The UNet's inputs by their names, but for the identity's.
    pub fn for_unet(&self) -> [(&'static str, &HostTensor); 6] {
        [
            ("sample", &self.sample),
            ("timestep", &self.timestep),
            ("encoder_hidden_states", &self.encoder_hidden_states),
            ("text_embeds", &self.text_embeds),
            ("time_ids", &self.time_ids),
            ("target", &self.target),
        ]
    }
}

/// Draws batches from a cache.
pub struct Batches {
    cache: Cache,
    empty: TextStates,
    /// Images of each person.
    people: HashMap<String, Vec<usize>>,
    keyed: Keyed,
    /// sqrt(a) and sqrt(1 - a) of each timestep.
    levels: Vec<[f64; 2]>,
    snr_gamma: f64,
    stratified_timesteps: bool,
    /// Whether the network predicts v, else the noise.
    predicts_v: bool,
    scaling_factor: f32,
    pair: Pair,
    drops: [f64; 3],
    batch: usize,
    accumulate: usize,
    /// Images of each size.
    sizes: BTreeMap<Size, Vec<usize>>,
    /// The images of the micro-batches of an epoch, one after the other.
    order: (u64, Vec<usize>),
}

/// What of its conditioning a sample loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dropped {
    text: bool,
    identity: bool,
}

impl Batches {
    /// All draws of a run on a model.
    ///
    /// # Errors
    /// As [`Batches::new`], and a model's broken configuration.
    pub fn of_model(cache: Cache, model: &SdxlModel, options: &TrainOptions) -> Result<Batches> {
        let config = scheduler_config(model)?;
        let schedule = NoiseSchedule::new(&config)?;
        let predicts_v = config.prediction_type == PredictionType::VPrediction;
        let scaling = model.vae(Precision::F32)?.config().scaling_factor;
        Batches::new(cache, &schedule, predicts_v, scaling, options)
    }

    /// All draws of a run.
    ///
    /// # Errors
    /// When the cache is empty or lacks the empty prompt.
    pub fn new(
        cache: Cache,
        schedule: &NoiseSchedule,
        predicts_v: bool,
        scaling_factor: f32,
        options: &TrainOptions,
    ) -> Result<Batches> {
        if cache.entries().is_empty() {
            let detail = match cache.rejected().first() {
                Some(first) => format!(
                    "holds no image that can be trained on; {} were rejected, as {}: {}",
                    cache.rejected().len(),
                    first.image_file,
                    first.why
                ),
                None => "holds no image yet; prepare the data first".to_owned(),
            };
            return Err(Error::file(cache.folder(), detail));
        }
        let mut people: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, entry) in cache.entries().iter().enumerate() {
            if let Some(person) = &entry.person {
                people.entry(person.clone()).or_default().push(index);
            }
        }
        let mut sizes: BTreeMap<Size, Vec<usize>> = BTreeMap::new();
        for (index, entry) in cache.entries().iter().enumerate() {
            sizes.entry(entry.size()).or_default().push(index);
        }
        // sigma^2 = (1 - a) / a.
        let level = |sigma: &f64| {
            let root = (1.0 / (1.0 + sigma * sigma)).sqrt();
            [root, sigma * root]
        };
        Ok(Batches {
            empty: cache.empty_prompt()?,
            people,
            keyed: Keyed::new(options.seed),
            levels: schedule.sigmas().iter().map(level).collect(),
            snr_gamma: options.snr_gamma,
            stratified_timesteps: options.stratified_timesteps,
            predicts_v,
            scaling_factor,
            pair: options.pair,
            drops: [options.drop_both, options.drop_text, options.drop_id],
            batch: options.batch,
            accumulate: options.accumulate,
            sizes,
            order: (u64::MAX, Vec::new()),
            cache,
        })
    }

    /// Sizes of the images, and how many there are of each.
    pub fn sizes(&self) -> impl Iterator<Item = (Size, usize)> {
        self.sizes.iter().map(|(size, images)| (*size, images.len()))
    }

    /// The tensors of an image of the largest area, for their extents, and its size.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn largest(&self) -> Result<(Size, Sample)> {
        let largest = self.sizes.iter().max_by_key(|([height, width], _)| height * width);
        let (size, images) = largest.ok_or_else(|| Error::invalid("cache", "holds no image"))?;
        Ok((*size, self.cache.sample(images[0])?))
    }

    /// The images of a micro-batch: every epoch takes each once, in an order of its own.
    ///
    /// Where there are several sizes, those of one batch have one: each size's images are shuffled and cut into batches, of which the last is
    /// filled up with the size's first ones, and then the batches of all sizes are shuffled.
    fn images(&mut self, step: u64, micro: usize) -> Vec<usize> {
        let first = ((step - 1) * self.accumulate as u64 + micro as u64) * self.batch as u64;
        let of_size = |images: &Vec<usize>| images.len().div_ceil(self.batch) * self.batch;
        let count = match self.sizes.len() {
            // Epochs may end within a batch.
            1 => self.cache.entries().len(),
            _ => self.sizes.values().map(of_size).sum(),
        };
        (first..first + self.batch as u64).map(|number| self.place(number, count)).collect()
    }

    /// The image at a place of a run whose epochs have `count` places.
    fn place(&mut self, number: u64, count: usize) -> usize {
        let epoch = number / count as u64;
        if self.order.0 != epoch {
            self.order = (epoch, self.epoch(epoch));
        }
        self.order.1[(number % count as u64) as usize]
    }

    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let order = self.keyed.order(epoch, "order", self.cache.entries().len());
        if self.sizes.len() == 1 {
            return order;
        }
        let mut batches = Vec::new();
        for size in self.sizes.keys() {
            let images: Vec<usize> =
                order.iter().copied().filter(|&image| self.cache.entries()[image].size() == *size).collect();
            let places = images.len().div_ceil(self.batch) * self.batch;
            let filled: Vec<usize> = images.iter().copied().cycle().take(places).collect();
            batches.extend(filled.chunks(self.batch).map(<[usize]>::to_vec));
        }
        self.keyed.order(epoch, "batches", batches.len()).into_iter().flat_map(|at| batches[at].clone()).collect()
    }

    /// The image that gives the identity.
    fn identity_image(&self, step: u64, sample: usize, image: usize) -> usize {
        let other = match self.pair {
            Pair::Same => false,
            Pair::Other => true,
            Pair::Mix => self.keyed.uniform(step, sample, "pair") < 0.5,
        };
        let person = self.cache.entries()[image].person.as_ref();
        let Some(all) = person.and_then(|person| self.people.get(person)).filter(|all| other && all.len() > 1) else {
            return image;
        };
        let others: Vec<usize> = all.iter().copied().filter(|&i| i != image).collect();
        others[self.keyed.below(step, sample, "other image", others.len())]
    }

    fn dropped(&self, step: u64, sample: usize) -> Dropped {
        let [both, text, identity] = self.drops;
        let drawn = self.keyed.uniform(step, sample, "drop");
        Dropped {
            text: drawn < both + text,
            identity: drawn < both || (drawn >= both + text && drawn < both + text + identity),
        }
    }

    /// Micro-batch `micro` of a step, both drawn by nothing but the seed and these numbers. Steps count from 1.
    ///
    /// # Errors
    /// When an image's tensors cannot be read or differ in shape.
    pub fn draw(&mut self, step: u64, micro: usize) -> Result<(Batch, People)> {
        let mut columns: [Vec<HostTensor>; 6 + HIDDEN_STATES] = Default::default();
        let mut timesteps = Vec::new();
        let mut time_ids = Vec::new();
        let (mut identified, mut levels, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (place, image) in self.images(step, micro).into_iter().enumerate() {
            let number = micro * self.batch + place;
            let sample = self.cache.sample(image)?;
            let from = self.identity_image(step, number, image);
            let identity = if from == image { sample.clone() } else { self.cache.sample(from)? };
            let dropped = self.dropped(step, number);
            let timestep = self.timestep(step, number);
            let (noisy, target) = self.noisy(&sample, step, number, timestep)?;
            let text = if dropped.text { self.empty.clone() } else { sample.text };
            let of_identity = |tensor: HostTensor| match dropped.identity {
                // What makes PuLID's own unconditional tokens.
                true => HostTensor::zeros(tensor.shape().clone()),
                false => tensor,
            };
            timesteps.push(timestep as f32);
            time_ids.extend(self.cache.entries()[image].time_ids);
            identified.push(!dropped.identity);
            let level = self.levels[timestep];
            levels.push(level);
            weights.push(snr_weight(level, self.snr_gamma, self.predicts_v) as f32);
            let face = Normalization::SYMMETRIC.apply(&scaled(&identity.face)?)?.nhwc_to_nchw()?;
            let row = [noisy, target, text.hidden, text.pooled, face, of_identity(identity.id_cond)];
            let row = row.into_iter().chain(identity.hidden.into_iter().map(of_identity));
            columns.iter_mut().zip(row).for_each(|(column, tensor)| column.push(tensor));
        }
        let mut stacked = columns.iter().filter(|c| !c.is_empty()).map(|column| stack(column));
        let mut next = || stacked.next().unwrap_or_else(|| Err(Error::invalid("cache", "lacks tensors")));
        let (sample, target) = (next()?, next()?);
        let (encoder_hidden_states, text_embeds, faces, id_cond) = (next()?, next()?, next()?, next()?);
        let hidden = (0..HIDDEN_STATES).map(|_| next()).collect::<Result<_>>()?;
        let batch = Batch {
            sample,
            timestep: HostTensor::from_f32([self.batch], timesteps)?,
            encoder_hidden_states,
            text_embeds,
            time_ids: HostTensor::from_f32([self.batch, 6], time_ids)?,
            target,
            faces,
            identified,
            levels,
            weights: HostTensor::from_f32([self.batch, 1, 1, 1], weights)?,
        };
        Ok((batch, People { id_cond, hidden }))
    }

    /// The timestep of a step's image `number`: uniform over all, or, stratified, over the image's part of them.
    fn timestep(&self, step: u64, number: usize) -> usize {
        let (count, parts) = (self.levels.len(), self.batch * self.accumulate);
        if !self.stratified_timesteps {
            return self.keyed.below(step, number, "timestep", count);
        }
        // Which image has which part is the epoch's order, which is random.
        let place = (number as f64 + self.keyed.uniform(step, number, "timestep")) / parts as f64;
        ((place * count as f64) as usize).min(count - 1)
    }

    /// A draw of the VAE's posterior with noise of a timestep on it, and what the network is to say of it.
    fn noisy(&self, sample: &Sample, step: u64, number: usize, timestep: usize) -> Result<(HostTensor, HostTensor)> {
        let (mean, logvar) = (sample.mean.as_f32()?, sample.logvar.as_f32()?);
        if mean.len() != logvar.len() {
            return Err(Error::invalid("cache", "has a mean and a variance of different extents"));
        }
        let count = mean.len();
        let drawn = self.keyed.normal(step, number, "latents", count);
        let noise = self.keyed.normal(step, number, "noise", count);
        let [signal, level] = self.levels[timestep].map(|v| v as f32);
        let clean = |i: usize| self.scaling_factor * (mean[i] + (0.5 * logvar[i]).exp() * drawn[i]);
        let shape = sample.mean.shape().clone();
        let noisy = HostTensor::from_fn(shape.clone(), |i| signal * clean(i) + level * noise[i]);
        let target = match self.predicts_v {
            true => HostTensor::from_fn(shape, |i| signal * noise[i] - level * clean(i)),
            false => HostTensor::from_f32(shape, noise)?,
        };
        Ok((noisy, target))
    }
}

/// A sample's factor in L_diff by its shares of clean latents and of noise: min(r, γ) / r with the ratio of signal to noise r = a² / s², or
/// min(r, γ) / (r + 1) where v is predicted (Min-SNR weighting, Hang et al., arXiv 2303.09556, section 3.4). 1 for γ = 0.
///
/// Most of the plain mean square comes from timesteps with little noise, which say little of whom a picture shows; the smaller γ, the more
/// the others count.
pub fn snr_weight([signal, noise]: [f64; 2], gamma: f64, predicts_v: bool) -> f64 {
    let ratio = (signal / noise).powi(2);
    match (gamma > 0.0, predicts_v) {
        (false, _) => 1.0,
        (true, false) if ratio <= gamma => 1.0,
        (true, false) => gamma / ratio,
        (true, true) => ratio.min(gamma) / (ratio + 1.0),
    }
}

/// Values of 0 to 255 as 0 to 1.
fn scaled(face: &HostTensor) -> Result<HostTensor> {
    let values = face.as_f32()?;
    Ok(HostTensor::from_fn(face.shape().clone(), |i| values[i] / 255.0))
}

/// Tensors [1, ...] of one shape as one [B, ...].
pub(crate) fn stack(parts: &[HostTensor]) -> Result<HostTensor> {
    let none = || Error::invalid("cache", "holds images whose tensors differ in shape; prepare the data anew");
    let first = parts.first().ok_or_else(none)?;
    if parts.iter().any(|part| part.shape() != first.shape()) || first.shape().first() != Some(&1) {
        return Err(none());
    }
    let values = parts.iter().map(HostTensor::as_f32).collect::<Result<Vec<_>>>()?.concat();
    let shape: Vec<usize> = std::iter::once(parts.len()).chain(first.shape()[1..].iter().copied()).collect();
    HostTensor::from_f32(Shape::new(shape), values)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cache::tests::{description, entry, sample};
    use crate::options::example;
    use pulid::sampler::SchedulerConfig;

    fn batches(options: &TrainOptions, folder: &std::path::Path) -> Batches {
        let mut cache = Cache::begin(folder.join("cache"), &description()).unwrap();
        if cache.entries().is_empty() {
            for (i, person) in [Some("a"), Some("a"), Some("a"), Some("b"), None].into_iter().enumerate() {
                cache.add(entry(&i.to_string(), person), &sample(i as f32)).unwrap();
            }
            cache.set_empty_prompt(&sample(-5.0).text).unwrap();
        }
        let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
        Batches::new(cache, &schedule, false, 0.5, options).unwrap()
    }

    /// A batch of nothing.
    pub fn nothing() -> Batch {
        let none = || HostTensor::zeros([0]);
        Batch {
            sample: none(),
            timestep: none(),
            encoder_hidden_states: none(),
            text_embeds: none(),
            time_ids: none(),
            target: none(),
            faces: none(),
            identified: Vec::new(),
            levels: Vec::new(),
            weights: none(),
        }
    }

    fn plain() -> TrainOptions {
        TrainOptions { drop_text: 0.0, drop_id: 0.0, drop_both: 0.0, ..example() }
    }

    /// The image that a row of a text or identity tensor came from.
    fn origins(t: &HostTensor) -> Vec<f32> {
        let values = t.as_f32().unwrap();
        values.chunks(values.len() / t.shape()[0]).map(|row| row[0]).collect()
    }

    #[test]
    fn a_step_s_batch_depends_on_its_number_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut one = batches(&plain(), folder.path());
        let all: Vec<(Batch, People)> = (1..=5).map(|step| one.draw(step, 0).unwrap()).collect();
        let mut other = batches(&plain(), folder.path());
        let (third, people) = other.draw(3, 0).unwrap();
        assert_eq!((&third.sample, &third.target), (&all[2].0.sample, &all[2].0.target));
        assert_eq!((&third.timestep, &people.id_cond), (&all[2].0.timestep, &all[2].1.id_cond));
        // Two epochs of five images in five batches of two.
        let mut seen: Vec<f32> = all.iter().flat_map(|(b, _)| origins(&b.encoder_hidden_states)).collect();
        let first: std::collections::BTreeSet<i64> = seen[..5].iter().map(|v| *v as i64).collect();
        assert_eq!(first.len(), 5);
        seen.sort_by(f32::total_cmp);
        assert_eq!(seen, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
        // Noise of another seed.
        let mut seeded = batches(&TrainOptions { seed: 1, ..plain() }, folder.path());
        assert_ne!(seeded.draw(3, 0).unwrap().0.target, third.target);
    }

    #[test]
    fn stratified_timesteps_take_one_of_each_part() {
        let folder = tempfile::tempdir().unwrap();
        let options = TrainOptions { batch: 2, accumulate: 2, stratified_timesteps: true, ..plain() };
        let mut stratified = batches(&options, folder.path());
        let mut drawn = Vec::new();
        for step in 1..=20 {
            for micro in 0..2 {
                let (batch, _) = stratified.draw(step, micro).unwrap();
                drawn.extend_from_slice(batch.timestep.as_f32().unwrap());
            }
        }
        for step in drawn.chunks(4) {
            let parts: Vec<usize> = step.iter().map(|t| *t as usize / 250).collect();
            assert_eq!(parts, [0, 1, 2, 3], "{step:?}");
        }
        assert_ne!(drawn[..4], drawn[4..8]);
    }

    #[test]
    fn batches_of_buckets_have_one_size_and_depend_on_their_number_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::begin(folder.path().join("cache"), &description()).unwrap();
        // Five high ones and two wide ones.
        for i in 0..7 {
            let (size, shape) = if i % 3 == 1 { ([64.0, 128.0], [1, 2, 4, 4]) } else { ([128.0, 64.0], [1, 4, 2, 4]) };
            let mut entry = entry(&i.to_string(), None);
            entry.time_ids[4..].copy_from_slice(&size);
            let tensor = HostTensor::from_fn(shape, |_| i as f32);
            cache.add(entry, &Sample { mean: tensor.clone(), logvar: tensor, ..sample(i as f32) }).unwrap();
        }
        cache.set_empty_prompt(&sample(-5.0).text).unwrap();
        let mut batches = batches(&TrainOptions { accumulate: 2, ..plain() }, folder.path());
        assert_eq!(batches.sizes().collect::<Vec<_>>(), [([64, 128], 2), ([128, 64], 5)]);
        // An epoch is one batch of the wide ones and three of the high ones, of which one stands there twice.
        let mut all = Vec::new();
        for number in 0..8 {
            let (batch, _) = batches.draw(1 + number / 2, (number % 2) as usize).unwrap();
            let images = origins(&batch.encoder_hidden_states);
            let shape = batch.sample.shape().clone();
            assert_eq!(batch.target.shape(), &shape);
            let sides = batch.time_ids.as_f32().unwrap().chunks(6).map(|ids| [ids[4] / 32.0, ids[5] / 32.0]);
            assert!(sides.into_iter().all(|sides| sides == [shape[1] as f32, shape[2] as f32]), "{shape}");
            assert!(images.iter().all(|image| (*image as usize % 3 == 1) == (shape[1] == 2)), "{images:?} {shape}");
            all.push((images, batch));
        }
        for epoch in all.chunks(4) {
            let mut counts = [0; 7];
            epoch.iter().flat_map(|(images, _)| images).for_each(|image| counts[*image as usize] += 1);
            assert!(counts.iter().all(|&count| count > 0) && counts.iter().sum::<i32>() == 8, "{counts:?}");
        }
        let of =
            |epoch: usize| all[4 * epoch..4 * epoch + 4].iter().map(|(images, _)| images.clone()).collect::<Vec<_>>();
        assert_ne!(of(0), of(1));
        let (again, _) = self::batches(&TrainOptions { accumulate: 2, ..plain() }, folder.path()).draw(3, 1).unwrap();
        assert_eq!((&again.sample, &again.time_ids), (&all[5].1.sample, &all[5].1.time_ids));
    }

    #[test]
    fn pairs_take_another_image_of_the_person_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut drawn = Vec::new();
        for pair in [Pair::Same, Pair::Other, Pair::Mix] {
            let mut batches = batches(&TrainOptions { pair, ..plain() }, folder.path());
            let mut pairs = Vec::new();
            for step in 1..=40 {
                let (batch, people) = batches.draw(step, 0).unwrap();
                pairs.extend(origins(&batch.encoder_hidden_states).into_iter().zip(origins(&people.id_cond)));
            }
            drawn.push(pairs);
        }
        assert!(drawn[0].iter().all(|(image, identity)| image == identity));
        // 3 and 4 are alone; 0, 1 and 2 are one person.
        for &(image, identity) in &drawn[1] {
            assert_eq!(image == identity, image > 2.5, "{image} {identity}");
            assert!(image > 2.5 || identity < 2.5);
        }
        let same = drawn[2].iter().filter(|(image, identity)| *image < 2.5 && image == identity).count();
        assert!((10..40).contains(&same), "{same} of 48");
    }

    #[test]
    fn shares_of_the_samples_lose_their_text_or_identity() {
        let folder = tempfile::tempdir().unwrap();
        let options = TrainOptions { drop_text: 0.2, drop_id: 0.3, drop_both: 0.1, ..plain() };
        let mut batches = batches(&options, folder.path());
        let mut counts = [0; 4];
        for step in 1..=300 {
            let (batch, people) = batches.draw(step, 0).unwrap();
            let identities = people.id_cond.as_f32().unwrap().chunks(6);
            for (text, identity) in origins(&batch.encoder_hidden_states).into_iter().zip(identities) {
                let (text, identity) = (text == -5.0, identity.iter().all(|v| *v == 0.0));
                counts[usize::from(text) + 2 * usize::from(identity)] += 1;
            }
        }
        for (count, share) in counts.into_iter().zip([0.4, 0.2, 0.3, 0.1]) {
            assert!((f64::from(count) / 600.0 - share).abs() < 0.06, "{counts:?}");
        }
    }

    /// diffusers' `DDPMScheduler.add_noise` and `get_velocity` with SDXL's schedule: sqrt(alphas_cumprod[[0, 500, 999]]).
    #[test]
    fn noise_levels_are_those_of_ddpm() {
        let folder = tempfile::tempdir().unwrap();
        let batches = batches(&plain(), folder.path());
        for (timestep, root) in [(0, 0.999_574_9), (500, 0.525_673), (999, 0.068_265_0)] {
            let [signal, level] = batches.levels[timestep];
            assert!((signal - root).abs() < 2e-5, "{timestep}: {signal}");
            assert!((signal * signal + level * level - 1.0).abs() < 1e-12);
        }
    }
}
