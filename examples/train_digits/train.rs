//! The steps: gradients of this rank's part, their sums, new weights.

use std::time::{Duration, Instant};

use windlass::{Communicator, Device, ReduceOp};

use crate::TrainError;
use crate::arguments::Arguments;
use crate::bucket::{Bucket, Number, Spent, buckets, timed};
use crate::digits::{Digits, Random, Share};
use crate::model::{Model, Pass};

/// A batch has so many parts in `--reproducible` mode.
const PARTS: usize = 8;

/// How well images were recognised, of all ranks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Score {
    /// The mean over the images.
    pub(crate) loss: f32,
    /// The part that was recognised.
    pub(crate) right: f32,
}

/// What has been learned, and how.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Of every step, before it.
    pub(crate) steps: Vec<Score>,
    /// After every epoch: the mean over its steps, and the held-out images.
    pub(crate) epochs: Vec<(Score, Score)>,
}

/// Training, with gradients summed as `E`.
#[derive(Debug)]
pub(crate) struct Training<'t, E: Number> {
    comm: &'t Communicator,
    digits: &'t Digits,
    rate: f32,
    batch: usize,
    share: Share,
    model: Model,
    buckets: Vec<Bucket<E>>,
    images: Vec<usize>,
    held_out: Vec<usize>,
    random: Random,
    /// How many steps there are in all.
    steps: usize,
    pub(crate) history: History,
    pub(crate) spent: Spent,
    pub(crate) elapsed: Duration,
}

impl<'t, E: Number> Training<'t, E> {
    pub(crate) fn new(
        arguments: &Arguments,
        comm: &'t Communicator,
        device: Option<&Device>,
        digits: &'t Digits,
    ) -> Result<Self, TrainError> {
        let (images, held_out) = digits.split(arguments.seed);
        let (rank, ranks) = (comm.rank(), comm.size());
        let batch = arguments.batch as usize;
        Ok(Self {
            comm,
            digits,
            rate: arguments.lr,
            batch,
            share: if arguments.reproducible {
                Share::fixed(PARTS, rank, ranks)
            } else {
                Share::by_rank(rank, ranks)
            },
            model: Model::new(arguments.seed)?,
            buckets: buckets(comm, device)?,
            steps: images.len().div_ceil(batch) * arguments.epochs as usize,
            images,
            held_out,
            random: Random::new(!arguments.seed),
            history: History::default(),
            spent: Spent::default(),
            elapsed: Duration::ZERO,
        })
    }

    /// Takes every image once.
    pub(crate) fn epoch(&mut self, mut seen: impl FnMut(&History)) -> Result<(), TrainError> {
        let begin = Instant::now();
        // The same order on all ranks.
        self.random.shuffle(&mut self.images);
        let images = std::mem::take(&mut self.images);
        let first = self.history.steps.len();
        for batch in images.chunks(self.batch) {
            let score = self.step(batch)?;
            if !score.loss.is_finite() {
                return Err(TrainError::Diverged { step: self.history.steps.len(), rate: self.rate });
            }
            self.history.steps.push(score);
            seen(&self.history);
        }
        self.images = images;
        let steps = &self.history.steps[first..];
        let mean = |of: fn(&Score) -> f32| steps.iter().map(of).sum::<f32>() / steps.len() as f32;
        let learned = Score { loss: mean(|score| score.loss), right: mean(|score| score.right) };
        let held_out = self.evaluate()?;
        self.history.epochs.push((learned, held_out));
        self.elapsed += begin.elapsed();
        Ok(())
    }

    fn passes(&self, batch: &[usize]) -> Result<Vec<Pass>, TrainError> {
        let forward = |piece| Ok(self.model.forward(self.digits.tensors(piece)?, batch.len())?);
        self.share.of(batch).map(forward).collect()
    }

    fn step(&mut self, batch: &[usize]) -> Result<Score, TrainError> {
        let step = self.history.steps.len();
        let mut passes = self.passes(batch)?;
        let mut flights = Vec::with_capacity(self.buckets.len());
        for mut bucket in std::mem::take(&mut self.buckets) {
            bucket.values().fill(E::default());
            let mut right = true;
            for layer in bucket.layers.clone().rev() {
                for pass in &mut passes {
                    let mut at = bucket.place(layer);
                    for gradient in self.model.backward(layer, pass)? {
                        let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
                        right &= bucket.add(at, &gradient);
                        at += gradient.len();
                    }
                }
            }
            if let Some(at) = bucket.extra() {
                for pass in &passes {
                    right &=
                        bucket.add(at, &[pass.loss / batch.len() as f32, pass.right / batch.len() as f32]);
                }
            }
            if !right {
                return Err(TrainError::Diverged { step, rate: self.rate });
            }
            flights.push(bucket.post(self.comm, &mut self.spent)?);
        }
        let rate = self.rate * (1.0 - step as f32 / self.steps as f32);
        let mut score = Score::default();
        for flight in flights {
            let mut bucket = flight.land(&mut self.spent)?;
            let sums = bucket.values().iter().map(|sum| sum.to_f32()).collect::<Vec<_>>();
            for layer in bucket.layers.clone() {
                self.model.update(layer, &sums[bucket.place(layer)..], rate)?;
            }
            if let Some(at) = bucket.extra() {
                score = Score { loss: sums[at], right: sums[at + 1] };
            }
            self.buckets.push(bucket);
        }
        Ok(score)
    }

    /// Looks at the images that nothing is learned from.
    fn evaluate(&mut self) -> Result<Score, TrainError> {
        let mut sums = [0i64; 2];
        for pass in self.passes(&self.held_out)? {
            for (sum, value) in sums.iter_mut().zip([pass.loss, pass.right]) {
                let diverged = TrainError::Diverged { step: self.history.steps.len(), rate: self.rate };
                *sum += i64::from_f32(value / self.held_out.len() as f32).ok_or(diverged)?;
            }
        }
        timed(&mut self.spent.exposed, || self.comm.blocking().all_reduce(&mut sums, ReduceOp::Sum))?;
        let [loss, right] = sums.map(Number::to_f32);
        Ok(Score { loss, right })
    }

    /// How many steps and held-out images there are, and the lengths of the buckets in bytes.
    pub(crate) fn sizes(&mut self) -> (usize, usize, usize, Vec<usize>) {
        let bytes = self.buckets.iter_mut().map(|bucket| size_of_val(bucket.values())).collect();
        (self.steps, self.images.len(), self.held_out.len(), bytes)
    }

    /// The model, when all ranks have the same.
    pub(crate) fn finish(&self) -> Result<(&Model, u64), TrainError> {
        let digest = self.model.digest()?;
        let mut range = [digest.cast_signed(), !digest.cast_signed()];
        self.comm.blocking().all_reduce(&mut range, ReduceOp::Max)?;
        if range[0] != !range[1] {
            return Err(TrainError::Different);
        }
        Ok((&self.model, digest))
    }
}
