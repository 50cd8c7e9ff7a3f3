//! Collectives of tensor parallelism as ops (Shoeybi et al. 2019, the conjugate pair f and g).

use llamero_comm::{Comm, CommError};
use llamero_tensor::{Backend, Tensor};

use crate::{Tape, Var};

impl<'m> Tape<'m> {
    /// Identity forward, sum over ranks backward: before a weight whose outputs are divided among ranks.
    pub fn copy_to_ranks(&mut self, x: Var, comm: &'m dyn Comm) -> Var {
        if comm.size() == 1 {
            return x;
        }
        let y = self.op(x.value().clone(), [x.id()], move |sweep, dy| {
            Ok(vec![all_reduce(sweep.backend, &dy, comm)?])
        });
        self.same_value(&y, &x);
        y
    }

    /// Sum over ranks forward, identity backward: after a weight whose inputs are divided among ranks.
    pub fn sum_over_ranks(&mut self, x: Var, comm: &'m dyn Comm) -> Var {
        if comm.size() == 1 {
            return x;
        }
        let y = match all_reduce(self.backend, x.value(), comm) {
            Ok(y) => y,
            Err(error) => {
                self.fail(error);
                x.value().clone()
            }
        };
        self.op(y, [x.id()], |_, dy| Ok(vec![dy]))
    }
}

fn all_reduce(backend: &dyn Backend, x: &Tensor, comm: &dyn Comm) -> Result<Tensor, CommError> {
    let mut host = backend.download(x);
    comm.all_reduce(&mut host)?;
    Ok(backend.upload(&host, x.shape(), x.dtype()))
}
