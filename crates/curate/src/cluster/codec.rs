//! Our operators as bytes, beside those of Ballista.

use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use serde::{Deserialize, Serialize};

use super::exec::{MapExec, ReduceExec};
use super::functions::{Functions, Place};

/// Begins the bytes of our operators; no message of Ballista begins with a zero, which is no tag of a field.
const MARK: &[u8] = b"\0llamero";

#[derive(Serialize, Deserialize)]
enum Operator {
    Map { place: Place, sends: bool },
    Reduce { place: Place },
}

/// Gives operators the functions of the process that they come to.
#[derive(Debug)]
pub(super) struct Codec {
    functions: Arc<Functions>,
    ballista: BallistaPhysicalExtensionCodec,
}

impl Codec {
    pub(super) fn new(functions: Arc<Functions>) -> Codec {
        Codec { functions, ballista: BallistaPhysicalExtensionCodec::default() }
    }
}

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(ours) = bytes.strip_prefix(MARK) else {
            return self.ballista.try_decode(bytes, inputs, context, converter);
        };
        let bad = |problem: String| DataFusionError::Internal(format!("an operator of curation: {problem}"));
        let [input] = inputs else { return Err(bad(format!("{} inputs", inputs.len()))) };
        let (functions, input) = (Arc::clone(&self.functions), Arc::clone(input));
        match postcard::from_bytes(ours).map_err(|error| bad(error.to_string()))? {
            Operator::Map { place, sends } => Ok(Arc::new(MapExec::new(functions, place, sends, input))),
            Operator::Reduce { place } => Ok(Arc::new(ReduceExec::new(functions, place, input))),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let operator = if let Some(map) = node.downcast_ref::<MapExec>() {
            Operator::Map { place: map.place.clone(), sends: map.sends }
        } else if let Some(reduce) = node.downcast_ref::<ReduceExec>() {
            Operator::Reduce { place: reduce.place.clone() }
        } else {
            return self.ballista.try_encode(node, bytes, converter);
        };
        bytes.extend_from_slice(MARK);
        let ours = postcard::to_allocvec(&operator);
        bytes.extend(ours.map_err(|error| DataFusionError::Internal(error.to_string()))?);
        Ok(())
    }
}
