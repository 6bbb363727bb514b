"""Rollouts: responses of the policy, their scores, and what each of their tokens is answerable for.

collect   prompts -> completions -> scores, the same on every process
measure   one trainer pass: log-probs of policy and reference, values
credit    scores and KL -> advantages and returns
pairs     scores -> pairs, for preference losses
"""
