"""spark-submit --properties-file FILE jobs/rank_candidates.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import rank_candidates

if __name__ == "__main__":
    sys.exit(main(rank_candidates))
