//! A plan as text.

use std::fmt;

use llamero_model::Recompute;

use super::{AxisTraffic, BatchPlan, KindTraffic, MeshPlan, MfuSource, StagePlan};
use crate::RankMemory;

/// `1234567.0` → `1.23 M`, in steps of 1000.
fn scaled(x: f64) -> String {
    const UNITS: [&str; 8] = ["", " k", " M", " G", " T", " P", " E", " Z"];
    let (mut x, mut unit) = (x, 0);
    while x >= 1000.0 && unit + 1 < UNITS.len() {
        x /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || x >= 100.0 {
        0
    } else if x >= 10.0 {
        1
    } else {
        2
    };
    format!("{x:.digits$}{}", UNITS[unit])
}

fn bytes(x: u64) -> String {
    let text = scaled(x as f64);
    if text.contains(' ') { format!("{text}B") } else { format!("{text} B") }
}

fn seconds(x: f64) -> String {
    if x >= 36_000.0 {
        format!("{:.0} h", x / 3600.0)
    } else if x >= 100.0 {
        format!("{x:.0} s")
    } else if x >= 1.0 {
        format!("{x:.1} s")
    } else {
        format!("{:.1} ms", 1000.0 * x)
    }
}

/// Which blocks, in one chunk; of several, how many. And the ends.
fn layers(stage: &StagePlan) -> String {
    let ends = [(stage.embedding, "emb"), (stage.head, "head")];
    let ends: String = ends.iter().filter(|(has, _)| *has).map(|(_, name)| format!(" + {name}")).collect();
    match &stage.layers[..] {
        [one] if !one.is_empty() => format!("{}–{}{ends}", one.start, one.end - 1),
        _ => format!("{}{ends}", stage.num_layers()),
    }
}

/// Rows of cells, the first column to the left and the others to the right.
fn aligned(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(i, (cell, &width))| {
                    if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        writeln!(f, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn memory_row(stage: &StagePlan) -> Vec<String> {
    let RankMemory {
        weights,
        optimizer,
        gradients,
        kept_activations,
        working_space,
        head_chunk,
        communication,
    } = stage.memory;
    let mut row = vec![stage.stage.to_string(), layers(stage), scaled(stage.params as f64)];
    row.push(stage.in_flight.to_string());
    let parts = [weights, optimizer, gradients, kept_activations, working_space, head_chunk, communication];
    row.extend(parts.map(bytes));
    row.push(bytes(stage.memory.total()));
    row.push(if stage.fits { "yes".into() } else { "NO".into() });
    row
}

fn traffic_row(stage: &StagePlan) -> Vec<String> {
    let mut row = vec![stage.stage.to_string()];
    for (_, axis) in stage.traffic.axes() {
        row.push(if axis.bytes == 0 { "–".into() } else { bytes(axis.bytes) });
        row.push(axis.seconds.filter(|_| axis.bytes > 0).map_or(String::new(), seconds));
    }
    row
}

/// What a stage sends, kind by kind.
fn kind_rows(stage: &StagePlan) -> Vec<Vec<String>> {
    let axes = stage.traffic.axes();
    let of_axis = |(name, axis): &(&str, &AxisTraffic)| {
        let row = |sent: &KindTraffic| vec![format!("{name}: {}", sent.kind.name()), bytes(sent.bytes)];
        axis.kinds.iter().map(row).collect::<Vec<_>>()
    };
    axes.iter().flat_map(of_axis).collect()
}

fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

impl MeshPlan {
    fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "mesh: {}, {} × {}", self.axes, self.axes.size(), self.device.name)?;
        let recompute = match self.recompute {
            Recompute::Nothing => "none",
            Recompute::Selective => "selective",
            Recompute::Blocks => "blocks",
        };
        let params = scaled(self.params as f64);
        writeln!(f, "model: {params} parameters, {}, recompute {recompute}", self.dtype)?;
        let (tokens, micros, sequence) =
            (scaled(self.tokens_per_step as f64), self.micro_batches, self.sequence);
        let (batch, micro) = (self.batch, self.micro_batch);
        writeln!(
            f,
            "step: {tokens} tokens, {batch} sequences of {sequence}; on each of {} data-parallel ranks {micros} micro-batches of {micro}",
            self.axes.dp
        )?;
        self.ramp(f)?;
        let (of_work, of_step) = (percent(self.bubble), percent(self.bubble_share));
        let (n, s) = (self.chunks, if self.chunks == 1 { "" } else { "s" });
        writeln!(
            f,
            "pipeline: {n} chunk{s} of blocks a rank, runs of {}, bubble {of_work} of the work, {of_step} of the step",
            self.run
        )?;
        self.arithmetic(f)?;
        self.memory(f)
    }

    /// The shapes of updates, where there are several.
    fn ramp(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.batches.len() < 2 {
            return Ok(());
        }
        for &BatchPlan { first_step, batch, sequence, tokens, .. } in &self.batches {
            let tokens = scaled(tokens as f64);
            writeln!(f, "  from step {first_step}: {batch} sequences of {sequence}, {tokens} tokens")?;
        }
        Ok(())
    }

    fn arithmetic(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.mfu_source {
            MfuSource::Given => "given",
            MfuSource::Published => "published for this mesh",
            MfuSource::Assumed => "assumed",
        };
        let [token, step] = [self.flops_per_token, self.flops_per_step].map(scaled);
        let (time, mfu) = (seconds(self.step_seconds), percent(self.mfu));
        writeln!(
            f,
            "arithmetic: {token}FLOP a token, {step}FLOP a step, {time} at {mfu} of the peak ({source})"
        )?;
        let (Some(steps), Some(tokens), Some(hours)) = (self.steps, self.tokens, self.device_hours) else {
            return writeln!(f, "run: the recipe leaves its length open");
        };
        let days = self.run_seconds.unwrap_or(0.0) / 86_400.0;
        let days = if days < 1e4 { format!("{days:.1}") } else { scaled(days) };
        let (tokens, hours) = (scaled(tokens as f64), scaled(hours));
        writeln!(f, "run: {steps} steps, {tokens} tokens, {hours} device hours, {days} days")
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.fits() { "fits" } else { "does NOT fit" };
        let total = bytes(self.fullest().map_or(0, |stage| stage.memory.total()));
        let [all, reserved] = [self.device.memory_bytes, self.device.reserved_bytes].map(bytes);
        let sharding = self.sharding;
        let device = if self.device.reserved_bytes == 0 {
            String::new()
        } else {
            format!(" and {reserved} for the device itself")
        };
        writeln!(f, "memory: {total} of {all}{device}: {verdict} (sharded: {sharding})")?;
        let each = bytes(self.checkpoint_bytes / self.axes.size() as u64);
        writeln!(
            f,
            "checkpoint: {}, {each} a rank on average, which its host holds a copy of while it is written",
            bytes(self.checkpoint_bytes)
        )
    }
}

impl MeshPlan {
    /// The stages that are shown: the first, the one with most memory, the one that sends most, and the last.
    fn shown(&self) -> Vec<&StagePlan> {
        let busiest = self.stages.iter().rev().max_by_key(|stage| stage.traffic.bytes());
        let ends = [self.stages.first(), self.fullest(), busiest, self.stages.last()];
        let mut shown: Vec<&StagePlan> = ends.into_iter().flatten().collect();
        shown.sort_by_key(|stage| stage.stage);
        shown.dedup_by_key(|stage| stage.stage);
        shown
    }
}

/// A summary, the memory of a rank of some stages, and what it sends in a step and how long that takes by itself.
impl fmt::Display for MeshPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary(f)?;
        let shown = self.shown();
        writeln!(f)?;
        let mut rows = vec![heading(&[
            "stage",
            "layers",
            "params",
            "held",
            "weights",
            "optimiser",
            "gradients",
            "kept",
            "working",
            "head",
            "messages",
            "in all",
            "fits",
        ])];
        rows.extend(shown.iter().map(|stage| memory_row(stage)));
        aligned(f, &rows)?;
        let Some(busiest) = shown.iter().max_by_key(|stage| stage.traffic.bytes()) else { return Ok(()) };
        if busiest.traffic.bytes() == 0 {
            return Ok(());
        }
        writeln!(f)?;
        let mut rows = vec![heading(&["stage", "tp sends", "", "cp", "", "pp", "", "dp", ""])];
        rows.extend(shown.iter().map(|stage| traffic_row(stage)));
        aligned(f, &rows)?;
        writeln!(f, "\nof stage {}, in a step", busiest.stage)?;
        aligned(f, &kind_rows(busiest))
    }
}
