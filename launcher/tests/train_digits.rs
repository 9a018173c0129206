//! Training in real processes: that it learns, and that neither the number of ranks nor memory that moves changes what it learns.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod command;
mod example;

use std::fmt::Write;
use std::fs;
use std::process::Command;

use command::{Scratch, succeeded, text, windlass};
use example::example;

/// What a run has told, and the file of its weights.
struct Learned {
    told: String,
    weights: Vec<u8>,
}

impl Learned {
    /// The number that a line has after this, which may be within it.
    fn figure(&self, before: &str) -> f64 {
        let rest = self.told.split_once(before).unwrap_or_else(|| panic!("no {before}:\n{}", self.told)).1;
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The numbers in the file: after a header, all are f32.
    fn values(&self) -> Vec<f32> {
        let (length, rest) = self.weights.split_first_chunk::<8>().unwrap();
        let values = rest[usize::try_from(u64::from_le_bytes(*length)).unwrap()..].as_chunks::<4>().0;
        assert_eq!(values.len(), 116_618);
        values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

fn train(ranks: u32, arguments: &str) -> Learned {
    static RUNS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let run = RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let file = Scratch::new(&format!("weights-{run}"));
    let ranks = ranks.to_string();
    let mut command = windlass(&["run", "-n", &ranks, "--output", "plain", "--timeout", "120", "--"]);
    command.arg(example("train_digits")).args(["--save", file.path()]);
    let output = command.args(arguments.split_whitespace()).output().unwrap();
    succeeded(&output);
    Learned { told: text(&output.stdout), weights: fs::read(file.path()).unwrap() }
}

/// Some images of the file's form: each digit has a row and a column of its own, and other ink.
fn drawn(images: u32) -> String {
    let mut text = String::new();
    for image in 0..images {
        let digit = image % 10;
        for pixel in 0..64 {
            let ink = pixel / 8 == digit % 8 || pixel % 8 == digit / 2;
            let ink = if ink { 16 - image % 5 } else { (image * 31 + pixel * 7) % 4 };
            write!(text, "{ink},").unwrap();
        }
        writeln!(text, "{digit}").unwrap();
    }
    text
}

#[test]
fn it_learns_to_read() {
    let curve = Scratch::new("curve.svg");
    let learned = train(4, &format!("--epochs 5 --curve {}", curve.path()));
    let told = &learned.told;
    assert!(told.contains("1438 images to learn from and 359 held out"), "{told}");
    let recognised = learned.figure("held out: ") / 359.0;
    assert!((0.95..1.0).contains(&recognised), "{told}");
    let (all, compute) = (learned.figure("the mean of 4: "), learned.figure("compute"));
    let (exposed, hidden) = (learned.figure("exposed communication"), learned.figure("hidden communication"));
    assert!((all - compute - exposed).abs() < 0.03, "each moment is compute or exposed: {told}");
    assert!(exposed > 0.0 && hidden > 0.0 && hidden <= compute, "{told}");
    let svg = fs::read_to_string(curve.path()).unwrap();
    assert!(
        ["<svg", "loss, held out", "recognised, held out"].iter().all(|word| svg.contains(word)),
        "{svg}"
    );
}

#[test]
fn any_number_of_ranks_learns_the_same() {
    let images = Scratch::new("images.csv");
    fs::write(images.path(), drawn(67)).unwrap();
    // 54 to learn from: the last batch has four, so that most of eight ranks have none of it.
    let arguments = format!("--epochs 2 --batch 10 --data {}", images.path());
    let [one, four, eight] = [1, 4, 8].map(|ranks| train(ranks, &arguments));
    for other in [&four, &eight] {
        let (values, others) = (one.values(), other.values());
        let far = values.iter().zip(&others).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-4, "{far}");
    }
    assert!(one.weights != four.weights, "where the order of the sums differs, some bit does");
    let ragged =
        [54, 100].map(|batch| train(1, &format!("--epochs 2 --batch {batch} --data {}", images.path())));
    assert!(ragged[0].weights == ragged[1].weights, "a batch that is not full is a mean over what it has");
    let exactly = [1, 3, 9].map(|ranks| train(ranks, &format!("{arguments} --reproducible")));
    assert!(exactly.iter().all(|other| other.weights == exactly[0].weights));
}

#[test]
fn the_shipped_digits_are_learned_to_the_bit_alike() {
    let [one, four] = [1, 4].map(|ranks| train(ranks, "--epochs 1 --batch 200 --reproducible"));
    assert!(one.weights == four.weights);
}

#[test]
fn gradients_that_move_are_the_same_to_the_bit() {
    let arguments = "--epochs 2 --batch 100 --accelerator simulated";
    let still = train(4, arguments);
    assert_eq!(still.figure("device memory: "), 0.0, "{}", still.told);
    let moved = train(4, &format!("{arguments} --moves-per-second 200"));
    assert!(moved.figure("device memory: ") > 10.0 && moved.figure("moves, ") > 0.0, "{}", moved.told);
    assert!(still.weights == moved.weights, "{}\n{}", still.told, moved.told);
}

#[test]
fn damaged_data_is_told_by_file_and_line() {
    let good = drawn(12);
    let file = Scratch::new("damaged.csv");
    let mut cut = good.clone();
    cut.truncate(good.len() - 30);
    for (content, words) in [
        (good.replacen("16", "17", 1).into_bytes(), "line 1, number "),
        (good.replacen('\n', ",\n", 1).into_bytes(), "line 1: 66 numbers, not 65"),
        (cut.into_bytes(), "line 12: 5"),
        (
            good.replace(",7\n", ",seven\n").into_bytes(),
            "line 8, number 65: \"seven\" is not a whole number from 0 to 9",
        ),
        (drawn(9).into_bytes(), "9 images are too few"),
        (Vec::new(), "0 images are too few"),
        (b"\x1f\x8b\x08\0\0\0".to_vec(), "unexpected end"),
    ] {
        fs::write(file.path(), content).unwrap();
        let output = Command::new(example("train_digits")).args(["--data", file.path()]).output().unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.starts_with("train_digits: ") && told.contains(file.path()) && told.contains(words),
            "{words}: {told}"
        );
    }
    let output = Command::new(example("train_digits")).args(["--data", "no/such.csv"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no/such.csv: No such file"), "{}", text(&output.stderr));
}

#[test]
fn what_cannot_be_is_refused() {
    for (arguments, word) in [
        ("--epochs 0", "10000"),
        ("--batch 0", "100000"),
        ("--lr NaN", "above 0"),
        ("--lr 0", "above 0"),
        ("--moves-per-second 1e9", "1000"),
        ("--accelerator cuda", "simulated"),
    ] {
        let output = Command::new(example("train_digits")).args(arguments.split(' ')).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        assert!(text(&output.stderr).contains(word), "{arguments}: {}", text(&output.stderr));
    }
    for arguments in ["--lr 100", "--lr 100 --reproducible"] {
        let output = Command::new(example("train_digits")).args(arguments.split(' ')).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        assert!(text(&output.stderr).contains("try a smaller --lr"), "{arguments}: {}", text(&output.stderr));
    }
}
