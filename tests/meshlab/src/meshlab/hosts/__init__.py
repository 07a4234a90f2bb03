# SPDX-License-Identifier: Apache-2.0
"""Labs whose nodes run on several machines, reached by SSH."""
