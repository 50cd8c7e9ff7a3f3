//! The same meshes on MPI as on threads, bit for bit: `cargo test --release -p llamero-train --features mpi --test mpi`.
//!
//! Without a job around it this program starts `mpirun` with itself as the program of every rank, and compares what rank 0
//! prints with a run on threads. `mpirun` must be in the path.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test with a main function of its own")]

mod common;

use std::process::Command;
use std::sync::Arc;

use common::{Made, config, llama, values};
use llamero_comm::{Mpi, Solo, Threads, World, WorldOptions};
use llamero_cpu::Cpu;
use llamero_model::Placement;
use llamero_tensor::{Backend, DType};
use llamero_train::{
    Mesh, OptimizerConfig, Ranks, SequenceSource, Sharding, TrainConfig, Trainer, build_stages,
};

const STEPS: u64 = 5;

/// In the environment of a rank: the mesh.
const MESH: &str = "LLAMERO_TEST_MESH";

/// In the environment of a rank: what is sharded.
const SHARDING: &str = "LLAMERO_TEST_SHARDING";

/// Parameters of the model, counted on a whole one.
fn num_params() -> usize {
    let backend = Cpu::new(1).unwrap();
    let whole = llama(&config(), &Placement::whole(&config()), (&backend, DType::Bf16), Arc::new(Solo));
    whole.params().map(|p| p.value.shape().elements()).sum()
}

/// Trains and gives the losses, the gradient norms and a hash of the weights of all ranks, as text.
fn train(world: &World, mesh: Mesh, sharding: Sharding) -> String {
    let settings = TrainConfig {
        steps: Some(STEPS),
        sequence: config().context,
        batch: 4,
        micro_batch: 1,
        sharding,
        optimizer: OptimizerConfig { peak_lr: 1e-3, warmup_steps: 2, ..OptimizerConfig::default() },
        ..TrainConfig::default()
    };
    let backend = Cpu::new(1).unwrap();
    let ranks = Ranks::new(world, mesh);
    let Ok(stages) = build_stages(&config(), &settings, &ranks, (&backend, DType::Bf16), values);
    let mut trainer = Trainer::on_mesh(stages, ranks, &backend, settings.clone());
    let own = trainer.own_sequences(0);
    let mut lines = String::new();
    for step in 0..STEPS {
        let first = step * settings.batch as u64;
        let sequences =
            own.clone().map(|i| SequenceSource::sequence(&Made, first + i as u64).unwrap()).collect();
        let outcome = trainer.step(step, sequences).unwrap();
        lines += &format!("{:016x} {:016x}\n", outcome.loss.to_bits(), outcome.grad_norm.to_bits());
    }
    let mut hasher = blake3::Hasher::new();
    let held: usize =
        trainer.stages().iter().flat_map(|s| s.params()).map(|p| p.value.shape().elements()).sum();
    let divided = mesh.pp * mesh.tp > 1 || sharding == Sharding::Parameters;
    assert!(held < num_params() || !divided, "a rank holds its part only");
    for param in trainer.stages().iter().flat_map(|s| s.params()) {
        hasher.update(&backend.download_raw(&param.value, 0..param.value.rows()));
    }
    let hashes = trainer.ranks().all.all_gather(hasher.finalize().as_bytes().to_vec().into()).unwrap();
    lines + &hashes.iter().map(|hash| format!("{}\n", blake3::hash(hash))).collect::<String>()
}

fn on_threads(mesh: Mesh, sharding: Sharding) -> String {
    let worlds = Threads::world(mesh.size(), WorldOptions::default());
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            worlds.into_iter().map(|world| scope.spawn(move || train(&world, mesh, sharding))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).next().unwrap()
    })
}

fn on_mpi(mesh: Mesh, sharding: Sharding) -> String {
    let output = Command::new("mpirun")
        .args(["--oversubscribe", "--allow-run-as-root", "--bind-to", "none"])
        .args(["-n", &mesh.size().to_string()])
        .arg(std::env::current_exe().unwrap())
        .env(MESH, mesh.to_string())
        .env(SHARDING, sharding.to_string())
        .output()
        .expect("mpirun, which comes with the MPI library");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{mesh}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

fn main() {
    if let (Ok(mesh), Ok(sharding)) = (std::env::var(MESH), std::env::var(SHARDING)) {
        let wire = Arc::new(Mpi::join().expect("MPI with threads"));
        let options = WorldOptions { hash: true, ..WorldOptions::default() };
        let world = World::new(wire, options);
        let text = train(&world, mesh.parse().unwrap(), sharding.parse().unwrap());
        if world.rank() == 0 {
            print!("{text}");
        }
        return;
    }
    let meshes = ["dp=2,tp=2", "pp=2,tp=2", "dp=2,pp=2", "cp=2,tp=2", "dp=2,cp=2", "dp=2,pp=2,tp=2"];
    let sharded = [("dp=2,pp=2", Sharding::Gradients), ("dp=4", Sharding::Parameters)];
    let sharded = sharded.into_iter().chain([("dp=2,pp=2,tp=2", Sharding::Parameters)]);
    for (mesh, sharding) in meshes.into_iter().map(|mesh| (mesh, Sharding::Optimizer)).chain(sharded) {
        let mesh: Mesh = mesh.parse().unwrap();
        let (threads, mpi) = (on_threads(mesh, sharding), on_mpi(mesh, sharding));
        assert_eq!(threads.lines().count(), STEPS as usize + mesh.size());
        assert_eq!(mpi, threads, "{mesh}");
        println!(
            "{mesh}, {sharding} sharded: {} MPI processes have the bits of as many threads",
            mesh.size()
        );
    }
}
