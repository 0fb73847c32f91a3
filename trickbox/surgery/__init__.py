"""Editing a model that was never written to be edited: plan on a tape, attach at sites, undo.

tape.py     one dry forward, recorded: what is called, in which order, with which shapes
sites.py    where a trick can act, and what follows there
flow.py     which call consumes what which other call has made
anatomy.py  what the tape means: layers, residual connections, blocks, head
depths.py   how deep each part lies, from the stem to the head
attention.py  the calls that weigh values by probabilities, and the same with the probabilities open
branches.py  the residual branches, and where something can act on one
places.py   where the user wants a trick to act
attach.py   how modules are attached to a layer that does not know of them
inside.py   how something acts on a function in the middle of a forward
draws.py    what a layer draws: masks that are functions of numbers
recompute.py  which call it is that activation checkpointing repeats
ledger.py   what was done to a model, and undo
edits.py    the verbs that tricks use
trial.py    whether the edited model still runs
norms.py    the norm that suits an output, and one norm in the place of another
bake.py     what tricks have learned, folded into the model or written out in a copy
table.py    what can be named in a model
picture.py  the model as a tree, with what tricks did to it
"""

from __future__ import annotations

from trickbox.surgery.anatomy import Anatomy as Anatomy
from trickbox.surgery.anatomy import Join as Join
from trickbox.surgery.attach import Attachments as Attachments
from trickbox.surgery.attach import Rank as Rank
from trickbox.surgery.attention import attend as attend
from trickbox.surgery.attention import attend_with_heads as attend_with_heads
from trickbox.surgery.attention import attentions as attentions
from trickbox.surgery.attention import product_of as product_of
from trickbox.surgery.branches import Branch as Branch
from trickbox.surgery.branches import is_stochastic_depth as is_stochastic_depth
from trickbox.surgery.depths import Depths as Depths
from trickbox.surgery.draws import Clock as Clock
from trickbox.surgery.draws import Draws as Draws
from trickbox.surgery.edits import Note as Note
from trickbox.surgery.edits import Surgery as Surgery
from trickbox.surgery.flow import parameter_users as parameter_users
from trickbox.surgery.ledger import builds_since as builds_since
from trickbox.surgery.ledger import clock_of as clock_of
from trickbox.surgery.ledger import edits_of as edits_of
from trickbox.surgery.ledger import forget_trained as forget_trained
from trickbox.surgery.ledger import has_draws as has_draws
from trickbox.surgery.ledger import is_tricked as is_tricked
from trickbox.surgery.ledger import recipes_of as recipes_of
from trickbox.surgery.ledger import remember as remember
from trickbox.surgery.ledger import seal as seal
from trickbox.surgery.ledger import undo as undo
from trickbox.surgery.ledger import undo_since as undo_since
from trickbox.surgery.norms import NORM_KINDS as NORM_KINDS
from trickbox.surgery.norms import MakeNorm as MakeNorm
from trickbox.surgery.norms import exchange_norm as exchange_norm
from trickbox.surgery.norms import norm_for as norm_for
from trickbox.surgery.places import Places as Places
from trickbox.surgery.sites import CONVOLUTIONS as CONVOLUTIONS
from trickbox.surgery.sites import DROPOUTS as DROPOUTS
from trickbox.surgery.sites import NORMS as NORMS
from trickbox.surgery.sites import POOLS as POOLS
from trickbox.surgery.sites import WEIGHT_LAYERS as WEIGHT_LAYERS
from trickbox.surgery.sites import Site as Site
from trickbox.surgery.sites import behind_norm as behind_norm
from trickbox.surgery.sites import gain_after as gain_after
from trickbox.surgery.sites import norm_after as norm_after
from trickbox.surgery.sites import norm_before as norm_before
from trickbox.surgery.tape import Event as Event
from trickbox.surgery.tape import Tape as Tape
from trickbox.surgery.tape import dry as dry
from trickbox.surgery.tape import evaluating as evaluating
from trickbox.surgery.tape import record as record
from trickbox.surgery.trial import try_out as try_out
