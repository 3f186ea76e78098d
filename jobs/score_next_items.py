"""spark-submit --properties-file FILE jobs/score_next_items.py --conf conf/cluster.yaml --run-id ID"""

import sys

from ecomspark.launch import main
from ecomspark.pipelines import score_next_items

if __name__ == "__main__":
    sys.exit(main(score_next_items))
