//! The images: read from a file, split by a seed, dealt out to the ranks.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use flate2::read::GzDecoder;

/// The set that ships with the example: see `data/README.md`.
const SHIPPED: &[u8] = include_bytes!("data/digits.csv.gz");
pub(crate) const PIXELS: usize = 64;
pub(crate) const CLASSES: usize = 10;
const INK: u32 = 16;
/// Unpacked, a file may be no longer.
const MOST_BYTES: u64 = 64 << 20;
/// Enough to hold some out.
const LEAST_IMAGES: usize = 10;
/// One image in so many is held out.
const HELD_OUT: usize = 5;

/// Why images could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("{file}: {error}")]
    Read { file: String, error: io::Error },
    #[error("{file}: more than {} MiB: give it fewer images", MOST_BYTES >> 20)]
    TooLong { file: String },
    #[error(
        "{file}, line {line}: {found} numbers, not 65: a line is 64 pixels and the digit, between commas"
    )]
    Length { file: String, line: usize, found: usize },
    #[error("{file}, line {line}, number {place}: \"{text}\" is not a whole number from 0 to {most}")]
    Value { file: String, line: usize, place: usize, text: String, most: u32 },
    #[error("{file}: {found} images are too few to learn from: at least {LEAST_IMAGES} are needed")]
    TooFew { file: String, found: usize },
}

/// Images and what they show.
#[derive(Debug)]
pub(crate) struct Digits {
    /// From 0, paper, to 1, ink.
    pixels: Vec<[f32; PIXELS]>,
    labels: Vec<u32>,
}

impl Digits {
    /// Those of a file, or those that are shipped.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, DataError> {
        let file =
            path.map_or_else(|| "the shipped digits.csv.gz".to_owned(), |path| path.display().to_string());
        let fail = |error| DataError::Read { file: file.clone(), error };
        let packed = path.map_or_else(|| Ok(SHIPPED.to_vec()), fs::read).map_err(fail)?;
        let mut text = String::new();
        let length = if packed.starts_with(&[0x1f, 0x8b]) {
            GzDecoder::new(&packed[..]).take(MOST_BYTES + 1).read_to_string(&mut text)
        } else {
            packed.take(MOST_BYTES + 1).read_to_string(&mut text)
        };
        if length.map_err(fail)? as u64 > MOST_BYTES {
            return Err(DataError::TooLong { file });
        }
        Self::parse(&text, &file)
    }

    fn parse(text: &str, file: &str) -> Result<Self, DataError> {
        let mut digits = Self { pixels: Vec::new(), labels: Vec::new() };
        for (line, text) in (1..).zip(text.lines()) {
            let value = |(place, text): (usize, &str)| {
                let most = if place < PIXELS { INK } else { CLASSES as u32 - 1 };
                text.trim().parse::<u32>().ok().filter(|value| *value <= most).ok_or_else(|| {
                    let text = text.trim().chars().take(40).collect();
                    DataError::Value { file: file.to_owned(), line, place: place + 1, text, most }
                })
            };
            let found = text.split(',').count();
            if found != PIXELS + 1 {
                return Err(DataError::Length { file: file.to_owned(), line, found });
            }
            let mut pixels = [0.0; PIXELS];
            for (place, text) in text.split(',').enumerate() {
                let value = value((place, text))?;
                match pixels.get_mut(place) {
                    Some(pixel) => *pixel = value as f32 / INK as f32,
                    None => digits.labels.push(value),
                }
            }
            digits.pixels.push(pixels);
        }
        let found = digits.labels.len();
        if found < LEAST_IMAGES {
            return Err(DataError::TooFew { file: file.to_owned(), found });
        }
        Ok(digits)
    }

    /// Which to learn from, and which are held out: one in five.
    pub(crate) fn split(&self, seed: u64) -> (Vec<usize>, Vec<usize>) {
        let mut all = (0..self.labels.len()).collect::<Vec<_>>();
        Random::new(seed).shuffle(&mut all);
        let held_out = all.split_off(all.len() - all.len() / HELD_OUT);
        (all, held_out)
    }

    /// Some images, one a row, and their digits.
    pub(crate) fn tensors(&self, images: &[usize]) -> candle_core::Result<(Tensor, Tensor)> {
        let pixels = images.iter().flat_map(|&image| self.pixels[image]).collect::<Vec<_>>();
        let labels = images.iter().map(|&image| self.labels[image]).collect::<Vec<_>>();
        Ok((
            Tensor::from_vec(pixels, (images.len(), PIXELS), &Device::Cpu)?,
            Tensor::from_vec(labels, images.len(), &Device::Cpu)?,
        ))
    }
}

/// How a batch is cut, and which pieces are this rank's.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pieces: usize,
    own: Range<usize>,
}

impl Share {
    /// One piece a rank.
    pub(crate) fn by_rank(rank: u32, ranks: u32) -> Self {
        let rank = rank as usize;
        Self { pieces: ranks as usize, own: rank..rank + 1 }
    }

    /// Always `pieces` pieces, whoever calculates them.
    pub(crate) fn fixed(pieces: usize, rank: u32, ranks: u32) -> Self {
        let before = |rank: u32| pieces * rank as usize / ranks as usize;
        Self { pieces, own: before(rank)..before(rank + 1) }
    }

    /// This rank's pieces of a batch: none when there are more ranks than images.
    pub(crate) fn of<'b>(&self, batch: &'b [usize]) -> impl Iterator<Item = &'b [usize]> {
        let begin = |piece: usize| batch.len() * piece / self.pieces;
        self.own.clone().map(move |i| &batch[begin(i)..begin(i + 1)]).filter(|piece| !piece.is_empty())
    }
}

/// Numbers that are the same on every rank: splitmix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    pub(crate) fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub(crate) fn shuffle(&mut self, all: &mut [usize]) {
        for last in (1..all.len()).rev() {
            all.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
    }
}
