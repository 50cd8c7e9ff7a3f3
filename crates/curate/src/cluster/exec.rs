//! The physical operators of a stage. Both hand over to [`super::task`], on a thread that may block.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, SendableRecordBatchStream,
};
use futures::StreamExt;
use tokio::runtime::Handle;

use super::functions::{Functions, Place};
use super::said::say;
use super::shuffle;
use super::task::{Reducing, map_and_send, map_only};
use crate::CurateError;

/// Batches that wait between a task's thread and Ballista.
const WAITING: usize = 2;

/// The plan of a stage: its map tasks by number, and the partitions of its reduce if it has one.
pub(super) fn plan(
    functions: &Arc<Functions>,
    place: &Place,
    tasks: &[u64],
    partitions: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let batch = |task: &u64| {
        let numbers = Arc::new(UInt64Array::from(vec![*task]));
        Ok(vec![RecordBatch::try_new(numbers_schema(), vec![numbers])?])
    };
    let rows = tasks.iter().map(batch).collect::<Result<Vec<_>>>()?;
    let scan = MemorySourceConfig::try_new_exec(&rows, numbers_schema(), None)?;
    let Some(partitions) = partitions else {
        return Ok(Arc::new(MapExec::new(Arc::clone(functions), place.clone(), false, scan)));
    };
    let map = MapExec::new(Arc::clone(functions), place.clone(), true, scan);
    let slot: Arc<dyn PhysicalExpr> = Arc::new(Column::new(shuffle::SLOT, 0));
    let shuffled = RepartitionExec::try_new(Arc::new(map), Partitioning::Hash(vec![slot], partitions))?;
    Ok(Arc::new(ReduceExec::new(Arc::clone(functions), place.clone(), Arc::new(shuffled))))
}

/// Numbers of tasks that are to be done, or are.
fn numbers_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("task", DataType::UInt64, false)]))
}

fn properties(schema: SchemaRef, input: &Arc<dyn ExecutionPlan>) -> Arc<PlanProperties> {
    let partitions = input.properties().output_partitioning().partition_count();
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(partitions),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

/// Does the map tasks whose numbers it reads. It sends their records to a shuffle, or writes parts and gives the numbers.
#[derive(Debug)]
pub(super) struct MapExec {
    functions: Arc<Functions>,
    pub(super) place: Place,
    pub(super) sends: bool,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl MapExec {
    pub(super) fn new(
        functions: Arc<Functions>,
        place: Place,
        sends: bool,
        input: Arc<dyn ExecutionPlan>,
    ) -> MapExec {
        let schema = if sends { shuffle::schema() } else { numbers_schema() };
        let properties = properties(schema, &input);
        MapExec { functions, place, sends, input, properties }
    }
}

/// Sorts and reduces the records of a partition, and writes its part. It gives nothing.
#[derive(Debug)]
pub(super) struct ReduceExec {
    functions: Arc<Functions>,
    pub(super) place: Place,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl ReduceExec {
    pub(super) fn new(functions: Arc<Functions>, place: Place, input: Arc<dyn ExecutionPlan>) -> ReduceExec {
        let properties = properties(numbers_schema(), &input);
        ReduceExec { functions, place, input, properties }
    }
}

impl DisplayAs for MapExec {
    fn fmt_as(&self, _: DisplayFormatType, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "MapExec: {}", self.place.folder)
    }
}

impl DisplayAs for ReduceExec {
    fn fmt_as(&self, _: DisplayFormatType, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "ReduceExec: {}", self.place.folder)
    }
}

fn only(mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    match (children.pop(), children.is_empty()) {
        (Some(child), true) => Ok(child),
        _ => Err(DataFusionError::Internal("an operator of curation has one input".to_owned())),
    }
}

impl ExecutionPlan for MapExec {
    fn name(&self) -> &'static str {
        "MapExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    /// A row is a task: more partitions than rows are of no use.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only(children)?;
        Ok(Arc::new(MapExec::new(Arc::clone(&self.functions), self.place.clone(), self.sends, input)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut input = self.input.execute(partition, context)?;
        let mut builder = RecordBatchReceiverStream::builder(self.schema(), WAITING);
        let (functions, place, sends, output) =
            (Arc::clone(&self.functions), self.place.clone(), self.sends, builder.tx());
        builder.spawn_blocking(move || {
            let runtime = Handle::current();
            let stage = functions.open(&place).map_err(say)?;
            let mut send = |batch| output.blocking_send(Ok(batch)).map_err(|_| left());
            let alive = || if output.is_closed() { Err(left()) } else { Ok(()) };
            while let Some(batch) = runtime.block_on(input.next()) {
                let batch = batch?;
                for &task in batch.column(0).as_primitive::<UInt64Type>().values() {
                    match &stage.file.reduce {
                        Some(reduce) if sends => {
                            map_and_send(&functions, &stage, &reduce.slots, task as usize, &mut send)
                        }
                        _ => map_only(&functions, &stage, task as usize, &alive),
                    }
                    .map_err(say)?;
                }
                if !sends {
                    send(batch).map_err(say)?;
                }
            }
            Ok(())
        });
        Ok(builder.build())
    }
}

impl ExecutionPlan for ReduceExec {
    fn name(&self) -> &'static str {
        "ReduceExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = only(children)?;
        Ok(Arc::new(ReduceExec::new(Arc::clone(&self.functions), self.place.clone(), input)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let mut input = self.input.execute(partition, context)?;
        let mut builder = RecordBatchReceiverStream::builder(self.schema(), WAITING);
        let (functions, place, output) = (Arc::clone(&self.functions), self.place.clone(), builder.tx());
        builder.spawn_blocking(move || {
            let runtime = Handle::current();
            let stage = functions.open(&place).map_err(say)?;
            let mut reducing = Reducing::new(&functions, &stage).map_err(say)?;
            // The error of a fetch stays as it is: by its type Ballista knows that the maps must be done again.
            while let Some(batch) = runtime.block_on(input.next()) {
                reducing.take(&batch?).map_err(say)?;
            }
            let alive = || if output.is_closed() { Err(left()) } else { Ok(()) };
            reducing.finish(&alive).map_err(say)
        });
        Ok(builder.build())
    }
}

/// Nobody waits for this task any more; nobody reads this either.
fn left() -> CurateError {
    CurateError::Record { what: "a task", problem: "it was called off".to_owned() }
}
