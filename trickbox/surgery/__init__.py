"""Editing a model that was never written to be edited: plan on a tape, attach at sites, undo.

tape.py     one dry forward, recorded: what is called, in which order, with which shapes
sites.py    where a trick can act, and what follows there
attach.py   how modules are attached to a layer that does not know of them
draws.py    what a layer draws: masks that are functions of numbers
recompute.py  which call it is that activation checkpointing repeats
edits.py    the verbs that tricks use, and undo
"""

from __future__ import annotations

from trickbox.surgery.attach import Attachments as Attachments
from trickbox.surgery.attach import Rank as Rank
from trickbox.surgery.draws import Clock as Clock
from trickbox.surgery.draws import Draws as Draws
from trickbox.surgery.edits import Note as Note
from trickbox.surgery.edits import Surgery as Surgery
from trickbox.surgery.edits import clock_of as clock_of
from trickbox.surgery.edits import edits_of as edits_of
from trickbox.surgery.edits import forget_trained as forget_trained
from trickbox.surgery.edits import has_draws as has_draws
from trickbox.surgery.edits import is_tricked as is_tricked
from trickbox.surgery.edits import seal as seal
from trickbox.surgery.edits import undo as undo
from trickbox.surgery.edits import undo_since as undo_since
from trickbox.surgery.sites import CONVOLUTIONS as CONVOLUTIONS
from trickbox.surgery.sites import DROPOUTS as DROPOUTS
from trickbox.surgery.sites import NORMS as NORMS
from trickbox.surgery.sites import POOLS as POOLS
from trickbox.surgery.sites import WEIGHT_LAYERS as WEIGHT_LAYERS
from trickbox.surgery.sites import Site as Site
from trickbox.surgery.sites import activation_after as activation_after
from trickbox.surgery.sites import norm_after as norm_after
from trickbox.surgery.tape import Event as Event
from trickbox.surgery.tape import Tape as Tape
from trickbox.surgery.tape import evaluating as evaluating
from trickbox.surgery.tape import record as record
