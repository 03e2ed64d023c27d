"""One room per component: each knows its stock module and its seam."""
