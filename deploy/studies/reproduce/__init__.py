"""The papers' claims, measured at a size that fits the machine: arms of equal steps, several seeds, one table."""

from deploy.studies.reproduce.claims import CLAIMS, Arm, Claim, Expectation
from deploy.studies.reproduce.plan import Plan, make_plans
from deploy.studies.reproduce.study import Study

__all__ = ["CLAIMS", "Arm", "Claim", "Expectation", "Plan", "Study", "make_plans"]
