//! A token goes around the ranks, and each adds itself.
//!
//! windlass run -n 4 -- target/release/examples/ring

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let comm = windlass::init()?;
    let (rank, size) = (comm.rank(), comm.size());
    if size == 1 {
        println!(
            "a ring needs two ranks: windlass run -n 4 -- {}",
            std::env::args().next().unwrap_or_default()
        );
        return Ok(());
    }
    let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
    let mut token = vec![0i64; 2];
    for round in 0..3 {
        if rank > 0 || round > 0 {
            comm.blocking().recv(&mut token, previous, 0)?;
        }
        token[0] += i64::from(rank);
        token[1] += 1;
        if rank == 0 {
            println!("round {round}: the token has made {} hops and holds {}", token[1] - 1, token[0]);
        }
        comm.blocking().send(&token, next, 0)?;
    }
    if rank == 0 {
        comm.blocking().recv(&mut token, previous, 0)?;
        let (hops, sum) = (i64::from(3 * size), 3 * i64::from(size) * i64::from(size - 1) / 2);
        assert_eq!(token, [sum, hops], "every rank has added itself three times");
        println!("the token is back after {hops} hops and holds {sum}");
    }
    comm.finalize()?;
    Ok(())
}
